//! How much a thread matters to the scheduler beside others.
//!
//! Not here: which threads there are. A thread can only step back, which no system forbids; should it fail all the same, the
//! thread works as it was.

/// By so much a thread steps back that has time: where cores are scarce it gets about a tenth of what others do.
const NICENESS: i32 = 10;

/// Lets shards, and everybody else, go before the calling thread.
pub fn step_back() {
    let _ = rustix::process::setpriority_process(None, NICENESS);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thread_steps_back_and_no_other() {
        let own = || rustix::process::getpriority_process(None).unwrap();
        let before = own();
        let there = std::thread::spawn(move || {
            step_back();
            own()
        });
        assert_eq!((there.join().unwrap(), own()), (NICENESS, before));
    }
}
