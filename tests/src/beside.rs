//! Which tests run at the same time. Meshes are heavy, and two that work fill two cores. But many tests wait for a leaf to end or a phase to go by,
//! and cost next to nothing meanwhile: those run beside the others.
//!
//! Invariants
//! - Of each kind so many run at a time as [`Kind::most`] says, whatever runs of the others; but nothing runs beside one that measures.
//! - Those that wait begin first and those that measure come last, so that nobody waits for a machine that is idle. Within a kind the order is that
//!   of the list.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use parking_lot::{Condvar, Mutex};

/// How many of the longest are named at the end.
const NAMED: usize = 12;

/// What a test does with the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It waits most of its time.
    Waits,
    /// It holds thousands of connections.
    Fills,
    /// It works.
    Works,
    /// It asserts how fast something is, or sends faster than a busy machine can.
    Measures,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Waits, Self::Fills, Self::Works, Self::Measures];

    /// So many run at a time.
    const fn most(self) -> usize {
        match self {
            // What they do between two waits adds up.
            Self::Waits => 4,
            // Two would have more bytes under way than the kernel holds for all sockets of the machine.
            Self::Fills | Self::Measures => 1,
            Self::Works => 2,
        }
    }

    fn may_run(self, running: &Running) -> bool {
        let measured = running.of_kind[Self::Measures as usize] > 0;
        let alone = if self == Self::Measures { running.others == 0 } else { !measured };
        alone && running.of_kind[self as usize] < self.most()
    }

    /// How it is called where a test's name is printed.
    const fn word(self) -> &'static str {
        match self {
            Self::Waits => "waits",
            Self::Fills => "fills",
            Self::Works => "",
            Self::Measures => "alone",
        }
    }
}

/// Who runs, and how long those took that have run.
struct Running {
    of_kind: [usize; 4],
    /// Tests that do not measure and run, or wait for their turn.
    others: usize,
    took: Vec<(Duration, String)>,
}

static RUNNING: Mutex<Running> = Mutex::new(Running { of_kind: [0; 4], others: 0, took: Vec::new() });
static CHANGED: Condvar = Condvar::new();

/// A test's turn, until it is dropped, be it by a panic.
struct Turn<'a> {
    kind: Kind,
    name: &'a str,
    begun: Instant,
}

impl<'a> Turn<'a> {
    fn wait(kind: Kind, name: &'a str) -> Self {
        let mut running = RUNNING.lock();
        running.others += usize::from(kind != Kind::Measures);
        CHANGED.wait_while(&mut running, |running| !kind.may_run(running));
        running.of_kind[kind as usize] += 1;
        Self { kind, name, begun: Instant::now() }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut running = RUNNING.lock();
        running.of_kind[self.kind as usize] -= 1;
        running.others -= usize::from(self.kind != Kind::Measures);
        running.took.push((self.begun.elapsed(), self.name.to_owned()));
        CHANGED.notify_all();
    }
}

/// A test that waits for its turn and fails by panicking.
pub(crate) fn trial(name: &str, kind: Kind, body: fn()) -> Trial {
    let called = name.to_owned();
    let run = move || {
        let _turn = Turn::wait(kind, &called);
        body();
        Ok(())
    };
    Trial::test(name, run).with_kind(kind.word())
}

/// Puts tests into the order in which they should begin; gives the threads that it takes, so that none that waits for its turn keeps a test of
/// another kind from its own.
pub(crate) fn order(trials: &mut [Trial]) -> usize {
    let kind = |trial: &Trial| Kind::ALL.into_iter().find(|kind| kind.word() == trial.kind()).unwrap_or(Kind::Works);
    trials.sort_by_key(|trial| kind(trial) as usize);
    Kind::Works.most() + trials.iter().filter(|trial| [Kind::Waits, Kind::Fills].contains(&kind(trial))).count()
}

/// Says how long the longest took, each from its turn on.
pub(crate) fn say_how_long() {
    let mut took = std::mem::take(&mut RUNNING.lock().took);
    took.sort_by(|one, other| other.cmp(one));
    if took.len() > 1 {
        let longest = took.iter().take(NAMED).map(|(time, name)| format!("{name} {:.0} s", time.as_secs_f64()));
        eprintln!("the longest: {}", longest.collect::<Vec<_>>().join(", "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_waits_for_its_turn_keeps_none_of_another_kind_from_its_own() {
        let mut trials = vec![
            trial("measures", Kind::Measures, || ()),
            trial("works", Kind::Works, || ()),
            trial("fills", Kind::Fills, || ()),
            Trial::test("is absent", || Ok(())),
            trial("waits", Kind::Waits, || ()),
        ];
        assert_eq!(order(&mut trials), 4);
        assert_eq!(
            trials.iter().map(Trial::name).collect::<Vec<_>>(),
            ["waits", "fills", "works", "is absent", "measures"]
        );
    }

    #[test]
    fn nothing_is_beside_one_that_measures() {
        let may = |of_kind, others| {
            let running = Running { of_kind, others, took: Vec::new() };
            Kind::ALL.map(|kind| kind.may_run(&running))
        };
        assert_eq!(may([0; 4], 0), [true; 4]);
        assert_eq!(may([3, 1, 2, 0], 6), [true, false, false, false]);
        // One has come and has not had its turn yet.
        assert_eq!(may([0; 4], 1), [true, true, true, false]);
        assert_eq!(may([0, 0, 0, 1], 1), [false; 4]);
    }

    #[test]
    fn no_more_of_a_kind_run_than_may_and_a_panic_gives_the_turn_back() {
        let first = Turn::wait(Kind::Fills, "first");
        let second = std::thread::spawn(|| {
            let _turn = Turn::wait(Kind::Fills, "second");
            assert_eq!(RUNNING.lock().of_kind[Kind::Fills as usize], 1);
            panic!("as tests fail");
        });
        drop(Turn::wait(Kind::Waits, "beside it"));
        assert!(!second.is_finished());
        drop(first);
        assert!(second.join().is_err());
        let running = RUNNING.lock();
        assert_eq!((running.of_kind, running.took.len()), ([0; 4], 3));
    }
}
