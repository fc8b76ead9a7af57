//! Times as people say them.

use std::time::{Duration, SystemTime};

use time::OffsetDateTime;

/// A time in UTC, to the second: `2026-11-21T20:39:58Z`.
pub fn utc(time: SystemTime) -> String {
    let at = OffsetDateTime::from(time);
    let (date, clock) = (at.date(), at.time());
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        date.year(),
        u8::from(date.month()),
        date.day(),
        clock.hour(),
        clock.minute(),
        clock.second()
    )
}

/// How long, in one unit: the largest of which there are at least two.
pub fn span(span: Duration) -> String {
    const UNITS: [(u64, &str); 4] = [(365 * 86400, "years"), (86400, "days"), (3600, "h"), (60, "min")];
    let seconds = span.as_secs();
    let unit = UNITS.iter().find(|(length, _)| seconds >= 2 * length);
    unit.map_or_else(|| format!("{seconds} s"), |(length, name)| format!("{} {name}", seconds / length))
}

/// When a certificate ends, seen from `now`: `ends in 43 min`, `expired 2 h ago`.
pub fn end(not_after: SystemTime, now: SystemTime) -> String {
    match not_after.duration_since(now) {
        Ok(left) if !left.is_zero() => format!("ends in {}", span(left)),
        Ok(_) => "expires now".to_owned(),
        Err(past) => format!("expired {} ago", span(past.duration())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_said_in_the_unit_that_fits() {
        for (seconds, said) in [
            (0, "0 s"),
            (119, "119 s"),
            (120, "2 min"),
            (2580, "43 min"),
            (7199, "119 min"),
            (7200, "2 h"),
            (172_800, "2 days"),
            (729 * 86400, "729 days"),
            (3650 * 86400, "10 years"),
        ] {
            assert_eq!(span(Duration::from_secs(seconds)), said);
        }
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_293_598);
        assert_eq!(utc(now), "2026-11-21T20:39:58Z");
        assert_eq!(end(now + Duration::from_mins(43), now), "ends in 43 min");
        assert_eq!(end(now, now), "expires now");
        assert_eq!(end(now - Duration::from_hours(2), now), "expired 2 h ago");
    }
}
