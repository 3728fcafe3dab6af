//! A histogram as the relay gives it to Prometheus: how many times were at or below each of some bounds.

/// A histogram with the counts of all buckets below added to each, the last bucket without a bound.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Buckets(Vec<(Option<u64>, u64)>);

impl Buckets {
    /// Reads the histogram of a name, in seconds and without further labels, out of a page of metrics; None if it is not
    /// there or cannot be read. Bounds are kept in microseconds.
    pub fn read(page: &str, name: &str) -> Option<Buckets> {
        let prefix = format!("{name}_bucket{{le=\"");
        let bucket = |line: &str| {
            let (bound, count) = line.split_once("\"} ")?;
            let bound = match bound {
                "+Inf" => None,
                seconds => Some((seconds.parse::<f64>().ok()? * 1e6).round() as u64),
            };
            Some((bound, count.parse().ok()?))
        };
        let buckets: Option<Vec<_>> = page.lines().filter_map(|line| line.strip_prefix(&prefix)).map(bucket).collect();
        buckets.filter(|buckets| !buckets.is_empty()).map(Buckets)
    }

    /// What was counted since an earlier reading of the same histogram.
    pub fn since(&self, before: &Buckets) -> Buckets {
        let counts = self.0.iter().zip(&before.0);
        Buckets(counts.map(|((bound, now), (_, then))| (*bound, now.saturating_sub(*then))).collect())
    }

    /// How many times were counted.
    pub fn count(&self) -> u64 {
        self.0.last().map_or(0, |(_, count)| *count)
    }

    /// The upper bound, in microseconds, of the bucket that holds a percentile (0 to 100): the percentile itself is not
    /// known, and not above. None if nothing was counted or the bucket has no upper bound.
    pub fn bound_us(&self, percentile: f64) -> Option<u64> {
        let wanted = (self.count() as f64 * percentile / 100.0).ceil().max(1.0) as u64;
        self.0.iter().find(|(_, count)| *count >= wanted)?.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# TYPE wait_seconds histogram\nwait_seconds_bucket{le=\"0.0001\"} 50\n\
                        wait_seconds_bucket{le=\"0.0025\"} 99\nwait_seconds_bucket{le=\"+Inf\"} 100\n\
                        wait_seconds_sum 1\nwait_seconds_count 100\nother_wait_seconds_bucket{le=\"1\"} 7\n";

    #[test]
    fn percentiles_are_bounds_of_buckets() {
        let buckets = Buckets::read(PAGE, "wait_seconds").unwrap();
        let bounds = [0.0, 50.0, 50.1, 99.0, 99.9].map(|percentile| buckets.bound_us(percentile));
        assert_eq!((buckets.count(), bounds), (100, [Some(100), Some(100), Some(2500), Some(2500), None]));
        assert_eq!(Buckets::read(PAGE, "seconds"), None);
        assert_eq!(Buckets::read("a_bucket{le=\"x\"} 1\n", "a"), None);
    }

    #[test]
    fn what_was_counted_before_is_left_out() {
        let before = Buckets::read(PAGE, "wait_seconds").unwrap();
        let now = PAGE.replace("} 99", "} 109").replace("+Inf\"} 100", "+Inf\"} 110");
        let since = Buckets::read(&now, "wait_seconds").unwrap().since(&before);
        assert_eq!((since.count(), since.bound_us(50.0)), (10, Some(2500)));
        assert_eq!(before.since(&before).bound_us(50.0), None);
    }
}
