//! What a run with kills or power cuts must have come to, by its ledger.
//!
//! Nothing acknowledged is lost, nothing is damaged, and what is repeated is explained by a kill between the two
//! arrivals: for each kill no more than could be in flight, or, after a power cut, not yet synced.

use ringpost_load::destination::Token;
use ringpost_load::ledger::{Coming, Findings, Repeated};
use std::fmt;
use std::time::{Duration, Instant};

/// An end of the program, and how many recipients may be repeated because of it.
#[derive(Copy, Clone, Debug)]
pub struct Kill {
    /// When it was to end.
    pub begun: Instant,
    /// After its end, before it was started again.
    pub over: Instant,
    pub repeats_max: usize,
}

/// The figures of a run that is as it must be.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    pub kills: usize,
    pub repeats: usize,
    pub notice_repeats: usize,
    /// The most repeats that one kill explains.
    pub most_of_one_kill: usize,
    /// The longest time between an arrival and the kill that made it come again.
    pub longest_in_flight: Duration,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} kills; {} repeats and {} of notifications, at most {} for one kill, up to {} ms before it",
            self.kills,
            self.repeats,
            self.notice_repeats,
            self.most_of_one_kill,
            self.longest_in_flight.as_millis()
        )
    }
}

/// Judges a run. An error says everything that is wrong, one thing a line.
pub fn judge(findings: &Findings, kills: &[Kill]) -> Result<Figures, String> {
    let mut faults = Vec::new();
    for lost in &findings.lost {
        faults.push(format!("lost: recipient {:?}, queued as {}", lost.destination, lost.id));
    }
    faults.extend(findings.damaged.iter().map(|what| format!("damaged: {what}")));
    faults.extend(findings.strange.iter().map(|what| format!("strange: {what}")));
    let mut figures = Figures {
        kills: kills.len(),
        repeats: findings.repeats(),
        notice_repeats: findings.notice_repeats(),
        ..Figures::default()
    };
    let mut by_kill = vec![0; kills.len()];
    for repeated in &findings.repeated {
        explain("repeated", repeated, kills, &mut by_kill, &mut figures, &mut faults);
    }
    for repeated in &findings.notified_again {
        explain("notified again", repeated, kills, &mut by_kill, &mut figures, &mut faults);
    }
    for (number, (kill, count)) in kills.iter().zip(&by_kill).enumerate() {
        if *count > kill.repeats_max {
            faults.push(format!("repeated: {count} recipients for kill {number}, at most {}", kill.repeats_max));
        }
    }
    figures.most_of_one_kill = by_kill.into_iter().max().unwrap_or(0);
    if faults.is_empty() { Ok(figures) } else { Err(faults.join("\n")) }
}

/// Finds the kill between the connections of each arrival and of the next. Arrivals that the destination left
/// unanswered need none.
fn explain(
    what: &str,
    repeated: &Repeated,
    kills: &[Kill],
    by_kill: &mut [usize],
    figures: &mut Figures,
    faults: &mut Vec<String>,
) {
    // What one life of the program has sent may be taken after its end, so the lives come first.
    let life = |coming: &Coming| kills.iter().filter(|kill| kill.over < coming.connected).count();
    let mut comings = repeated.comings.clone();
    comings.sort_by_key(|coming| (life(coming), coming.at));
    for pair in comings.windows(2).filter(|pair| !pair[0].unanswered) {
        let (number, next) = (life(&pair[0]), life(&pair[1]));
        if number == next {
            let (token, index) = (repeated.token, repeated.index);
            faults.push(format!("{what}: {token} for recipient {index}, without a kill in between: {comings:?}"));
            continue;
        }
        by_kill[number] += 1;
        let before = kills[number].begun.saturating_duration_since(pair[0].at);
        figures.longest_in_flight = figures.longest_in_flight.max(before);
    }
}

/// The tokens and queue ids that a failed run is to be looked into for.
pub fn suspects(findings: &Findings) -> Vec<(Token, String)> {
    findings.lost.iter().map(|lost| (lost.destination.token, lost.id.clone())).collect()
}
