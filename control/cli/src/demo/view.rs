//! The live view: drawn over itself once a second on a terminal; a line at each event elsewhere.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use super::board::{Board, Lane, PhaseName};
use super::shop::Want;
use crate::output::{self, Paint};

/// Widest bar, in characters.
const BAR: usize = 20;

/// To a screen of its own, without line wrap and cursor; and back.
const OPEN: &str = "\x1b[?1049h\x1b[?7l\x1b[?25l";
/// See [`OPEN`].
pub const CLOSE: &str = "\x1b[?25h\x1b[?7h\x1b[?1049l";

/// Draws, or tells.
pub struct View {
    live: bool,
    paint: Paint,
    open: bool,
}

impl Default for View {
    /// Live if standard error is a terminal.
    fn default() -> Self {
        Self { live: output::interactive(), paint: Paint::stderr(), open: false }
    }
}

impl View {
    /// Tells what happens before and after traffic, and events where nobody looks at a live view.
    pub fn tell(&self, text: &str) {
        output::say(format_args!("{} {text}", self.paint.faint("weft demo:")));
    }

    /// Tells an event, unless the live view shows it anyway.
    pub fn event(&self, at: Duration, text: &str) {
        if !self.live {
            self.tell(&format!("{:5.1} s  {text}", at.as_secs_f64()));
        }
    }

    /// Draws the board, if anybody looks.
    pub fn draw(&mut self, board: &Board, now: Instant, left: Option<Duration>) {
        if !self.live {
            return;
        }
        let page = page(board, now, left, self.paint);
        let mut text = if self.open { String::new() } else { OPEN.to_owned() };
        self.open = true;
        // From the top; each line clears what stood there, and the last one what is below.
        text.push_str("\x1b[H");
        for line in page.lines() {
            let _ = write!(text, "{line}\x1b[K\r\n");
        }
        text.push_str("\x1b[J");
        output::draw(&text);
    }

    /// Gives the terminal back.
    pub fn close(&mut self) {
        if std::mem::take(&mut self.open) {
            output::draw(CLOSE);
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.close();
    }
}

fn page(board: &Board, now: Instant, left: Option<Duration>, paint: Paint) -> String {
    let mut page = String::new();
    let at = board.at(now).as_secs();
    let left = left.map_or_else(|| "Ctrl-C ends it".to_owned(), |left| format!("{} s left", left.as_secs()));
    let _ = writeln!(page, "{}  {at} s of traffic, {left}", paint.strong("weft demo"));
    let _ = writeln!(page, "{}\n", phases(board, paint));
    let head = format!(
        "{:<12} {:<16} {:<6} {:>6} {:>8} {:>8} {:>6} {:>7} {:>7} {:>7}",
        "WHO", "CALLS", "BY", "REQ/S", "P50 ms", "P99 ms", "MTLS", "LIMITED", "DENIED", "FAILED"
    );
    let _ = writeln!(page, "{}", paint.faint(head));
    for lane in &board.lanes {
        let _ = writeln!(page, "{}", line(lane, paint));
    }
    page.push('\n');
    if let Some(lane) = board.lanes.iter().find(|lane| lane.flow.want == Want::Split) {
        let _ = writeln!(page, "{}", split(lane, paint));
    }
    for (at, text) in &board.events {
        let _ = writeln!(page, "{} {text}", paint.faint(format!("{:6.1} s", at.as_secs_f64())));
    }
    page
}

fn phases(board: &Board, paint: Paint) -> String {
    let current = board.phases.last().map(|phase| phase.name);
    let names = PhaseName::ALL.map(|name| {
        let begun = board.phases.iter().any(|phase| phase.name == name);
        match name.name() {
            text if current == Some(name) => paint.strong(format!("[{text}]")),
            text if begun => paint.good(text),
            text => paint.faint(text),
        }
    });
    names.join(" > ")
}

fn line(lane: &Lane, paint: Paint) -> String {
    let (rate, recent) = lane.recent();
    let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"));
    let share = lane.mtls_share();
    let mtls = format!("{:>6}", share.map_or_else(|| "-".to_owned(), |share| format!("{:.0}%", share * 100.0)));
    let failed = format!("{:>7}", lane.total.failed);
    format!(
        "{:<12} {:<16} {:<6} {:>6.0} {:>8} {:>8} {} {:>7} {:>7} {}",
        lane.flow.client(),
        lane.flow.server(),
        if lane.flow.method == "GET" { lane.flow.protocol() } else { "post" },
        rate,
        number(recent.percentile(0.5)),
        number(recent.percentile(0.99)),
        if share == Some(1.0) { paint.good(mtls) } else { paint.warn(mtls) },
        lane.total.limited,
        lane.total.denied,
        if lane.total.failed > 0 { paint.bad(failed) } else { failed },
    )
}

fn split(lane: &Lane, paint: Paint) -> String {
    let mut text = format!("{}  ", lane.flow.server());
    for (version, count) in &lane.total.by_version {
        let share = *count as f64 / lane.total.ok.max(1) as f64;
        let bar = "#".repeat(((share * BAR as f64).round() as usize).min(BAR));
        let _ = write!(text, "{version} {} {:.1} %   ", paint.good(bar), share * 100.0);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::shop;
    use super::*;
    use crate::app::client::tally::Tally;

    #[test]
    fn a_page_shows_who_calls_whom() {
        let start = Instant::now();
        let mut board = Board::new(shop::flows(20.0), start);
        let mut tally = Tally { sent: 10, ok: 10, ..Tally::default() };
        tally.by_version = [("v1".to_owned(), 9), ("v2".to_owned(), 1)].into();
        board.count(0, &tally, start);
        board.note("reviews-1 dies", start);
        let text = page(&board, start, Some(Duration::from_secs(9)), Paint::stderr());
        for part in
            ["shop/web", "shop/catalog", "v1 ################## 90.0 %", "reviews-1 dies", "[steady]", "9 s left"]
        {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }
}
