//! Two runs side by side: the difference of each figure and how far it can be trusted.
//!
//! A run is one file of results, or several of the same kind. With three files or more on each side the figures of whole
//! runs are the sample; with fewer, the intervals of their courses are, which tells the scatter within a run and not that
//! between runs: the table says which. The spread is that of the difference of medians, by the bootstrap.

use crate::random::Random;
use crate::results::Results;
use crate::send::tally::Point;
use std::fmt;

/// Draws of the bootstrap.
const DRAWS: usize = 2000;
/// Files of a side from which on whole runs are compared.
const RUNS_MIN: usize = 3;

/// One figure of two runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// What it is, with its unit.
    pub name: &'static str,
    /// The median of the first side.
    pub before: f64,
    /// The median of the second side.
    pub after: f64,
    /// The difference in parts of the first, and the range that holds it in 95 of 100 cases. None without a spread.
    pub change: Option<(f64, f64, f64)>,
    /// How many values each side has.
    pub values: (usize, usize),
}

impl Difference {
    /// Whether the range leaves no doubt about the sign.
    pub fn is_clear(&self) -> bool {
        self.change.is_some_and(|(_, low, high)| low > 0.0 || high < 0.0)
    }
}

/// The comparison of two sides.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// Whether whole runs were compared, not intervals.
    pub by_runs: bool,
    /// Figure by figure.
    pub differences: Vec<Difference>,
}

/// Compares two sides, each of at least one run.
pub fn compare(before: &[Results], after: &[Results]) -> Comparison {
    let by_runs = before.len() >= RUNS_MIN && after.len() >= RUNS_MIN;
    let of_run = |name, figure: fn(&Results) -> f64| {
        let values = |side: &[Results]| side.iter().map(figure).filter(|value| *value > 0.0).collect();
        difference(name, values(before), values(after))
    };
    let of_course = |name, figure: fn(&Point) -> f64, whole: fn(&Results) -> f64| {
        if by_runs {
            return of_run(name, whole);
        }
        let values = |side: &[Results]| side.iter().flat_map(|run| inner(&run.points)).map(figure).collect();
        difference(name, values(before), values(after))
    };
    let differences = vec![
        of_course(
            "messages per second",
            |point| point.acknowledged as f64 / point.length.max(1e-9),
            |run| run.sent.per_second,
        ),
        of_course("latency p50, ms", |point| point.p50_us as f64 / 1e3, |run| run.sent.latency.p50_us as f64 / 1e3),
        of_course("latency p99, ms", |point| point.p99_us as f64 / 1e3, |run| run.sent.latency.p99_us as f64 / 1e3),
        of_course("latency p99.9, ms", |point| point.p999_us as f64 / 1e3, |run| run.sent.latency.p999_us as f64 / 1e3),
        of_run("latency max, ms", |run| run.sent.latency.max_us as f64 / 1e3),
        of_run("source CPU per message, us", |run| run.sent.cpu_us_per_message),
        of_run("relay CPU per message, us", |run| run.relay.map_or(0.0, |relay| relay.cpu_us_per_message)),
        of_run("relay's own memory, KiB", |run| run.relay.map_or(0.0, |relay| relay.memory_most_kib as f64)),
        of_run("arrived per second", |run| run.relay.map_or(0.0, |relay| relay.arrived_per_second)),
    ];
    let told = |difference: &Difference| difference.values.0 > 0 && difference.values.1 > 0;
    Comparison { by_runs, differences: differences.into_iter().filter(told).collect() }
}

/// The points with messages, without the first and the last, which are cut off anywhere.
fn inner(points: &[Point]) -> impl Iterator<Item = &Point> {
    let inner = if points.len() > 4 { &points[1..points.len() - 1] } else { points };
    inner.iter().filter(|point| point.acknowledged > 0)
}

fn difference(name: &'static str, before: Vec<f64>, after: Vec<f64>) -> Difference {
    let values = (before.len(), after.len());
    let (middle_before, middle_after) = (median(&mut before.clone()), median(&mut after.clone()));
    let change = (values.0 > 2 && values.1 > 2 && middle_before > 0.0).then(|| {
        let (low, high) = spread(&before, &after);
        (middle_after / middle_before - 1.0, low, high)
    });
    Difference { name, before: middle_before, after: middle_after, change, values }
}

/// The range that holds the relative difference of medians in 95 of 100 draws.
fn spread(before: &[f64], after: &[f64]) -> (f64, f64) {
    // A fixed seed: the same files give the same table.
    let mut random = Random::new(0x626f_6f74);
    let mut draw = |side: &[f64]| {
        let mut values: Vec<f64> = side.iter().map(|_| side[random.below(side.len() as u64) as usize]).collect();
        median(&mut values)
    };
    let mut changes: Vec<f64> = (0..DRAWS)
        .filter_map(|_| {
            let (first, second) = (draw(before), draw(after));
            (first > 0.0).then(|| second / first - 1.0)
        })
        .collect();
    changes.sort_by(f64::total_cmp);
    let at = |share: f64| changes.get((changes.len() as f64 * share) as usize).copied().unwrap_or_default();
    (at(0.025), at(0.975))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        len if len % 2 == 1 => values[len / 2],
        len => (values[len / 2 - 1] + values[len / 2]) / 2.0,
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sample = if self.by_runs {
            "whole runs"
        } else {
            "intervals within runs (give three files or more of each side for runs)"
        };
        writeln!(f, "medians of {sample}; the range holds the difference in 95 of 100 cases")?;
        for one in &self.differences {
            write!(f, "  {:<28} {:>12.2} {:>12.2}", one.name, one.before, one.after)?;
            match one.change {
                Some((change, low, high)) => {
                    let verdict = if one.is_clear() { "" } else { "  (no clear difference)" };
                    let percent = |share: f64| share * 100.0;
                    writeln!(
                        f,
                        "  {:+7.1} %  [{:+.1} .. {:+.1}]{verdict}",
                        percent(change),
                        percent(low),
                        percent(high)
                    )?;
                }
                None if one.before > 0.0 => {
                    writeln!(f, "  {:+7.1} %  (too few values for a range)", (one.after / one.before - 1.0) * 100.0)?;
                }
                None => writeln!(f)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(rate: f64, scatter: u64) -> Results {
        let mut random = Random::new(rate as u64);
        let points = (0..50).map(|number| Point {
            at: number as f64 / 10.0,
            length: 0.1,
            acknowledged: (rate / 10.0) as u64 + random.below(scatter + 1),
            p50_us: 100,
            ..Point::default()
        });
        let mut results = Results { points: points.collect(), ..Results::default() };
        results.sent.per_second = rate;
        results
    }

    fn rates(before: &[Results], after: &[Results]) -> Difference {
        compare(before, after).differences[0].clone()
    }

    #[test]
    fn a_real_difference_is_clear_and_none_is_not() {
        let faster = rates(&[run(1000.0, 20)], &[run(1200.0, 20)]);
        assert!(faster.is_clear() && faster.change.is_some_and(|(change, low, high)| low < change && change < high));
        assert!((0.1..0.3).contains(&faster.change.unwrap().0), "{faster:?}");
        let same = rates(&[run(1000.0, 200)], &[run(1001.0, 200)]);
        assert!(!same.is_clear(), "{same:?}");
    }

    #[test]
    fn several_runs_are_compared_as_runs() {
        let side = |rates: [f64; 3]| rates.map(|rate| run(rate, 1));
        let comparison = compare(&side([100.0, 110.0, 105.0]), &side([200.0, 210.0, 220.0]));
        assert!(comparison.by_runs && comparison.differences[0].is_clear());
        assert_eq!(comparison.differences[0].values, (3, 3));
        assert!(comparison.to_string().contains("+100.0 %"), "{comparison}");
        assert!(!compare(&side([1.0, 2.0, 3.0]), &[run(5.0, 1)]).by_runs);
    }
}
