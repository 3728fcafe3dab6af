//! When messages are due: the profiles of an open loop.
//!
//! A schedule does not know what became of the messages before: it does not slow down with the server, so that a latency
//! counted from the due time holds the wait that a stalled server causes (no coordinated omission). Pure.

use crate::random::Random;
use crate::receive::rules::parse_span;
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// Messages a second, at most.
const RATE_MAX: f64 = 10_000_000.0;
/// Lines of a trace, at most.
const TRACE_MAX: usize = 50_000_000;

/// How load comes.
#[derive(Clone, Debug, PartialEq)]
pub enum Profile {
    /// As fast as the sessions get answers: a closed loop.
    Closed,
    /// So many messages a second.
    Constant(f64),
    /// From one rate to another within a time; afterwards it stays.
    Ramp {
        /// Messages a second at first.
        from: f64,
        /// Messages a second at the end.
        to: f64,
        /// How long it takes.
        over: Duration,
    },
    /// One rate after the other, each for the same time; the last stays.
    Step {
        /// Messages a second.
        rates: Vec<f64>,
        /// How long each lasts.
        each: Duration,
    },
    /// Nothing, then so many messages at once; again and again.
    Burst {
        /// Messages of a burst.
        messages: u64,
        /// The time before each.
        idle: Duration,
    },
    /// A rate that swings about a mean.
    Sine {
        /// Messages a second in the mean.
        mean: f64,
        /// How far it swings; at most the mean.
        amplitude: f64,
        /// The length of a swing.
        period: Duration,
    },
    /// As it was recorded.
    Trace(Arc<[Traced]>),
}

/// A line of a trace.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Traced {
    /// When, from the beginning.
    pub at: Duration,
    /// How large, in octets, if the trace says so.
    pub size: Option<u32>,
    /// To how many recipients, if the trace says so.
    pub recipients: Option<u16>,
}

/// A profile or trace that cannot be read; says what was expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadProfile(String);

impl fmt::Display for BadProfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadProfile {}

impl FromStr for Profile {
    type Err = BadProfile;

    fn from_str(text: &str) -> Result<Profile, BadProfile> {
        let (name, rest) = text.split_once(':').unwrap_or((text, ""));
        let parts: Vec<&str> = rest.split(':').collect();
        let profile = match (name, parts.as_slice()) {
            ("closed", [""]) => Some(Profile::Closed),
            ("constant", [rate]) => parse_rate(rate).map(Profile::Constant),
            ("ramp", [rates, over]) => parse_ramp(rates, over),
            ("step", [rates, each]) => parse_step(rates, each),
            ("burst", [messages]) => parse_burst(messages, "2s"),
            ("burst", [messages, idle]) => parse_burst(messages, idle),
            ("sine", [mean, amplitude, period]) => parse_sine(mean, amplitude, period),
            ("trace", _) => return read_trace(Path::new(rest)),
            _ => None,
        };
        profile.ok_or_else(|| {
            BadProfile(format!(
                "{text}: a profile is closed, constant:RATE, ramp:FROM-TO:TIME, step:RATE,RATE,..:TIME, \
                 burst:MESSAGES[:IDLE], sine:MEAN:AMPLITUDE:PERIOD or trace:FILE, with times as in 500ms or 2m"
            ))
        })
    }
}

fn parse_rate(text: &str) -> Option<f64> {
    text.parse().ok().filter(|rate: &f64| *rate > 0.0 && *rate <= RATE_MAX)
}

fn parse_time(text: &str) -> Option<Duration> {
    parse_span(text).filter(|span| !span.is_zero())
}

fn parse_ramp(rates: &str, over: &str) -> Option<Profile> {
    let (from, to) = rates.split_once('-')?;
    Some(Profile::Ramp { from: parse_rate(from)?, to: parse_rate(to)?, over: parse_time(over)? })
}

fn parse_step(rates: &str, each: &str) -> Option<Profile> {
    let rates = rates.split(',').map(parse_rate).collect::<Option<Vec<f64>>>()?;
    Some(Profile::Step { rates, each: parse_time(each)? })
}

fn parse_burst(messages: &str, idle: &str) -> Option<Profile> {
    let messages = messages.parse().ok().filter(|count| *count > 0)?;
    Some(Profile::Burst { messages, idle: parse_time(idle)? })
}

fn parse_sine(mean: &str, amplitude: &str, period: &str) -> Option<Profile> {
    let mean = parse_rate(mean)?;
    let amplitude = parse_rate(amplitude).filter(|swing| *swing <= mean)?;
    Some(Profile::Sine { mean, amplitude, period: parse_time(period)? })
}

/// Reads a trace: a line is `SECONDS [OCTETS [RECIPIENTS]]`, times never go back, `#` begins a comment.
fn read_trace(path: &Path) -> Result<Profile, BadProfile> {
    let fail = |text: String| BadProfile(format!("{}: {text}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| fail(error.to_string()))?;
    let mut lines = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let traced = parse_traced(line)
            .filter(|traced: &Traced| {
                lines.last().is_none_or(|last: &Traced| last.at <= traced.at) && lines.len() < TRACE_MAX
            })
            .ok_or_else(|| fail(format!("line {}: not SECONDS [OCTETS [RECIPIENTS]], in order of time", number + 1)))?;
        lines.push(traced);
    }
    Ok(Profile::Trace(lines.into()))
}

fn parse_traced(line: &str) -> Option<Traced> {
    let mut words = line.split_ascii_whitespace();
    let at = Duration::try_from_secs_f64(words.next()?.parse().ok()?).ok()?;
    let size = words.next().map(str::parse).transpose().ok()?;
    let recipients = words.next().map(str::parse).transpose().ok()?.filter(|count| (1..=1000).contains(count));
    words.next().is_none().then_some(Traced { at, size, recipients })
}

/// The due times of one profile, one after the other.
#[derive(Clone, Debug)]
pub struct Schedule {
    profile: Profile,
    /// Draws the distances of a Poisson process; without, messages come evenly.
    random: Option<Random>,
    number: u64,
    /// How many messages of the rate's integral have been reached.
    reached: f64,
    last: Duration,
}

impl Schedule {
    /// From the beginning. With a seed, arrivals are random with the profile's rate (a Poisson process); without, even.
    pub fn new(profile: Profile, random_by: Option<u64>) -> Schedule {
        Schedule { profile, random: random_by.map(Random::new), number: 0, reached: 0.0, last: Duration::ZERO }
    }

    /// The next message; None when a trace is over, and at once for a closed loop.
    #[expect(clippy::should_implement_trait, reason = "an iterator would invite to collect what never ends")]
    pub fn next(&mut self) -> Option<Traced> {
        let number = self.number;
        self.number += 1;
        let at = match &self.profile {
            Profile::Closed => return None,
            Profile::Trace(lines) => return lines.get(usize::try_from(number).ok()?).copied(),
            Profile::Burst { messages, idle } => {
                idle.saturating_mul(u32::try_from(number / messages + 1).unwrap_or(u32::MAX))
            }
            profile => {
                let reached = self.reached;
                self.reached += match &mut self.random {
                    // The distance to the next event of a Poisson process of rate 1; the draw is never 0.
                    Some(random) => -((random.below(1 << 53) + 1) as f64 / (1_u64 << 53) as f64).ln(),
                    None => 1.0,
                };
                time_of(profile, reached, self.last)
            }
        };
        self.last = at;
        Some(Traced { at, size: None, recipients: None })
    }
}

/// When the integral of a profile's rate reaches a count; never before `last`, when it reached the one before.
fn time_of(profile: &Profile, count: f64, last: Duration) -> Duration {
    let seconds = match profile {
        Profile::Constant(rate) => count / rate,
        Profile::Ramp { from, to, over } => ramp_time(*from, *to, over.as_secs_f64(), count),
        Profile::Step { rates, each } => step_time(rates, each.as_secs_f64(), count),
        Profile::Sine { mean, amplitude, period } => {
            let period = period.as_secs_f64();
            let swing = amplitude * period / std::f64::consts::TAU;
            // The swing moves a count by no more than this.
            let (mut low, mut high) = ((count - 2.0 * swing) / mean, count / mean);
            while high - low > 1e-7 {
                let middle = (low + high) / 2.0;
                let sum = mean * middle + swing * (1.0 - (std::f64::consts::TAU * middle / period).cos());
                if sum < count { low = middle } else { high = middle }
            }
            high
        }
        _ => 0.0,
    };
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX).max(last)
}

fn ramp_time(from: f64, to: f64, over: f64, count: f64) -> f64 {
    let in_ramp = (from + to) / 2.0 * over;
    if count > in_ramp {
        return over + (count - in_ramp) / to;
    }
    let slope = (to - from) / over;
    if slope.abs() < 1e-9 {
        return count / from;
    }
    // from t + slope t^2 / 2 = count
    ((from * from + 2.0 * slope * count).max(0.0).sqrt() - from) / slope
}

fn step_time(rates: &[f64], each: f64, count: f64) -> f64 {
    let (mut left, mut start) = (count, 0.0);
    for (at, rate) in rates.iter().enumerate() {
        if left <= rate * each || at + 1 == rates.len() {
            return start + left / rate;
        }
        left -= rate * each;
        start += each;
    }
    start
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(text: &str, count: usize, random_by: Option<u64>) -> Vec<f64> {
        let mut schedule = Schedule::new(text.parse().unwrap_or_else(|error| panic!("{error}")), random_by);
        (0..count).map_while(|_| schedule.next()).map(|traced| traced.at.as_secs_f64()).collect()
    }

    fn between(times: &[f64], from: f64, to: f64) -> usize {
        times.iter().filter(|at| (from..to).contains(*at)).count()
    }

    #[test]
    fn rates_are_kept_in_every_part() {
        let constant = times("constant:100", 1000, None);
        assert!((990..=1000).contains(&between(&constant, 0.0, 10.0)));
        let ramp = times("ramp:100-300:10s", 5000, None);
        assert!((1990..=2010).contains(&between(&ramp, 0.0, 10.0)), "{}", between(&ramp, 0.0, 10.0));
        assert!((299..=301).contains(&between(&ramp, 12.0, 13.0)));
        let step = times("step:10,100,50:2s", 1000, None);
        assert_eq!([between(&step, 0.01, 2.01), between(&step, 2.01, 4.01)], [20, 200]);
        let sine = times("sine:100:100:4s", 2000, None);
        let (high, low) = (between(&sine, 0.0, 2.0), between(&sine, 2.0, 4.0));
        assert!((395..=405).contains(&(high + low)) && high > 4 * low, "{high} {low}");
        for times in [constant, ramp, step, sine] {
            assert!(times.is_sorted());
        }
    }

    #[test]
    fn bursts_come_at_once_and_again() {
        let burst = times("burst:3:500ms", 7, None);
        assert_eq!(burst, [0.5, 0.5, 0.5, 1.0, 1.0, 1.0, 1.5]);
    }

    #[test]
    fn random_arrivals_have_the_rate_and_repeat() {
        let random = times("constant:1000", 20_000, Some(3));
        assert!((19.0..21.0).contains(&random[19_999]), "{}", random[19_999]);
        assert_eq!(random, times("constant:1000", 20_000, Some(3)));
        let close = random.windows(2).filter(|pair| pair[1] - pair[0] < 0.0005).count();
        assert!((7000..9000).contains(&close), "of 20,000 distances {close} are below half of the mean");
    }

    #[test]
    fn a_trace_is_replayed() {
        let path = std::env::temp_dir().join(format!("ringpost-trace-{}", std::process::id()));
        std::fs::write(&path, "# seconds octets recipients\n0 100\n\n0.5 200 3 # three\n0.5\n").unwrap();
        let mut schedule = Schedule::new(format!("trace:{}", path.display()).parse().unwrap(), None);
        assert_eq!(schedule.next(), Some(Traced { at: Duration::ZERO, size: Some(100), recipients: None }));
        let second = Traced { at: Duration::from_millis(500), size: Some(200), recipients: Some(3) };
        assert_eq!(schedule.next(), Some(second));
        assert!(schedule.next().is_some() && schedule.next().is_none());
        for wrong in ["1\n0\n", "x\n", "1 2 3 4\n", "-1\n"] {
            std::fs::write(&path, wrong).unwrap();
            assert!(format!("trace:{}", path.display()).parse::<Profile>().is_err(), "{wrong:?}");
        }
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn what_is_no_profile_is_refused() {
        for text in [
            "",
            "constant:0",
            "constant",
            "ramp:1:2s",
            "sine:1:2:3s",
            "burst:0",
            "step:1,x:2s",
            "closed:1",
            "trace:/nowhere",
        ] {
            assert!(text.parse::<Profile>().is_err(), "{text}");
        }
    }
}
