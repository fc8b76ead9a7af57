//! The same change in a mesh and in one of a tenth of it, with the same subscribers: what grows with the mesh.

use super::super::table::Metric;
use super::super::{Error, say};
use super::counted;
use super::phases::{Run, at, millis};
use super::report::{Bound, Report};
use super::world::World;
use super::{Args, Scratch};

/// Proxies with which it is measured, all of them subscribers.
const PROXIES: usize = 100;
const CHANGES: usize = 5;
/// The smaller mesh has so many times less.
const TIMES: usize = 10;
/// Instructions that count as the same: a table of ten times the size is looked up in a few steps more.
const SAME: f64 = 1.1;

/// Measures it.
pub fn measure(args: &Args, world: World, report: &mut Report) -> Result<(), Error> {
    let small = world.services / TIMES;
    let proxies = PROXIES.min(world.proxies).min(small * world.members);
    let mut sizes = Vec::new();
    for (phase, services) in [("growth-tenth", small), ("growth-whole", world.services)] {
        let calls = world.calls.min(small.saturating_sub(1));
        let world = World { hot_every: 1, ..World::new(services, services * world.members, proxies, calls)? };
        let scratch = Scratch::new()?;
        let mut run = Run::begin(args, world, &scratch.0)?;
        run.start(&mut Report::default())?;
        let before = pushed(&mut run)?;
        let mut all = Vec::new();
        for turn in 0..CHANGES {
            all.push(run.once(|run, mark| run.change_one(turn, mark))?);
        }
        let changes = CHANGES as f64;
        let after = pushed(&mut run)?;
        let resources = all.iter().map(|once| once.counted.resources).sum::<f64>() / changes;
        let bytes = all.iter().map(|once| once.counted.bytes).sum::<f64>() / changes;
        let compiled = (after.0 - before.0) / changes;
        let same = |at: usize| sizes.get(at).map_or(Bound::Shown, |small| Bound::Just(*small));
        report.add(phase, Metric::less("services", "services"), services as f64, Bound::Shown);
        report.add(phase, Metric::less("resources compiled that differ", "resources"), compiled, same(0));
        report.add(phase, Metric::less("resources sent", "resources"), resources, same(1));
        report.add(phase, Metric::less("bytes", "B"), bytes, same(2));
        let last = at(&all, 0.5, |once| once.counted.age(1.0));
        report.add(phase, millis("to the last acknowledgement, median"), last, Bound::Shown);
        let cpu = all.iter().map(|once| once.cpu).sum::<f64>() / changes;
        report.add(phase, millis("CPU of control"), cpu * 1e3, Bound::Shown);
        report.add(phase, millis("time to compile"), (after.1 - before.1) / changes * 1e3, Bound::Shown);
        let counted = counted::instructions(&world, CHANGES, &scratch.0)?;
        let most = sizes.get(3).map_or(Bound::Shown, |small: &f64| Bound::Most(small * SAME));
        match counted {
            Some(counted) => report.add(phase, Metric::less("instructions", "instructions"), counted, most),
            None => say("  instructions are not counted: valgrind is not on this machine"),
        }
        sizes = vec![compiled, resources, bytes, counted.unwrap_or(f64::INFINITY)];
    }
    Ok(())
}

/// Resources that were compiled anew so far, and the seconds that compiling took.
fn pushed(run: &mut Run<'_>) -> Result<(f64, f64), Error> {
    let control = run.control()?;
    let compiled = control.metric("weft_control_resources_changed_total");
    Ok((compiled, control.metric("weft_control_compile_duration_seconds_sum")))
}
