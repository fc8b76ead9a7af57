//! `weft events`: the last changes, and what became of them.

use weft_control::distribute::events::Event;

use super::ask;
use crate::args::Events;
use crate::exit::{Exit, Failure};
use crate::output::{self, Paint};

/// Of one event so many names are printed.
const NAMED: usize = 3;

/// Prints them, the oldest first.
pub fn run(args: &Events) -> Result<Exit, Failure> {
    let about = args.object.as_ref().map(|object| format!("&object={object}")).unwrap_or_default();
    let page = format!("/debug/events?since={}{about}", args.since.as_secs());
    let events: Vec<Event> = ask(args.asked.control, &page)?;
    if args.asked.json {
        output::json(&events);
    } else {
        let paint = Paint::stdout();
        for event in &events {
            let line = line(event);
            output::out(match (event.refused, event.waiting) {
                (0, 0) => line,
                (0, _) => paint.warn(line),
                _ => paint.bad(line),
            });
        }
    }
    Ok(Exit::Ok)
}

fn line(event: &Event) -> String {
    let why = names(&event.objects, event.objects_in_all);
    let why = match &*event.cause {
        "objects" => why,
        cause if why.is_empty() => cause.to_owned(),
        cause => format!("{cause} of {why}"),
    };
    let made = match event.resources_in_all {
        0 => return format!("{}  {why}: nothing that proxies use came of it", time(event.at)),
        made => format!("{made} resources ({})", names(&event.resources, made)),
    };
    let told = match (event.told, event.waiting) {
        (0, _) => "nobody uses them".to_owned(),
        (told, 0) => format!("told {told}, all answered after {:.0} ms", event.answered_ms.unwrap_or_default()),
        (told, waiting) => format!("told {told}, {waiting} have not answered yet"),
    };
    let but = [(event.refused, "refused"), (event.gone, "went away")].into_iter().filter(|(count, _)| *count > 0);
    let but = but.fold(String::new(), |said, (count, what)| format!("{said}, {count} {what}"));
    format!("{}  {why}: {made}, compiled in {:.1} ms, {told}{but}", time(event.at), event.compiled_ms)
}

fn names(names: &[impl AsRef<str>], all: usize) -> String {
    let shown = names.len().min(NAMED);
    let said: Vec<&str> = names[..shown].iter().map(AsRef::as_ref).collect();
    let more = if all > shown { format!(" and {} more", all - shown) } else { String::new() };
    said.join(", ") + &more
}

/// The time of day, UTC.
fn time(at: f64) -> String {
    let milliseconds = (at * 1e3) as u64;
    let seconds = milliseconds / 1000;
    format!("{:02}:{:02}:{:02}.{:03}Z", seconds / 3600 % 24, seconds / 60 % 60, seconds % 60, milliseconds % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_was_seen_what_came_of_it_and_who_answered() {
        let mut event = Event {
            at: 3_723.5,
            cause: "objects".to_owned(),
            objects: ["Service/shop/a", "Service/shop/b", "Service/shop/c", "Service/shop/d"]
                .map(str::to_owned)
                .to_vec(),
            objects_in_all: 40,
            ..Event::default()
        };
        let why = "01:02:03.500Z  Service/shop/a, Service/shop/b, Service/shop/c and 37 more";
        assert_eq!(line(&event), format!("{why}: nothing that proxies use came of it"));
        (event.resources, event.resources_in_all) = (vec!["service/shop/a:80".into()], 1);
        let made = format!("{why}: 1 resources (service/shop/a:80), compiled in 0.0 ms");
        assert_eq!(line(&event), format!("{made}, nobody uses them"));
        (event.told, event.waiting) = (3, 2);
        assert_eq!(line(&event), format!("{made}, told 3, 2 have not answered yet"));
        (event.waiting, event.answered_ms, event.refused) = (0, Some(12.4), 1);
        assert_eq!(line(&event), format!("{made}, told 3, all answered after 12 ms, 1 refused"));
        let drain =
            Event { cause: "drain".to_owned(), objects: vec!["Pod/shop/a".to_owned()], objects_in_all: 1, ..event };
        assert!(line(&drain).contains("  drain of Pod/shop/a: 1 resources"), "{}", line(&drain));
    }
}
