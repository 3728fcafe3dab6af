//! Where log lines go: a thread of their own writes them, so that a slow terminal or pipe never holds up the control
//! thread, on which DNS depends.
//!
//! Bounded: [`BLOCKS`] blocks may wait to be written and [`PENDING_OCTETS_MAX`] octets may wait behind them; what is
//! more is dropped and counted, and the count is written once there is room again.

use std::io::Write;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

/// Blocks on their way to the writing thread.
const BLOCKS: usize = 16;
/// Octets from which a block is sent off without waiting for a flush.
const BLOCK_OCTETS: usize = 64 * 1024;
/// Octets of lines that wait while the writing thread is behind.
const PENDING_OCTETS_MAX: usize = 4 << 20;
/// How long the end waits for the last lines.
const FINISH_TIME: Duration = Duration::from_secs(2);

/// Takes lines; gives them to the writing thread in blocks.
#[derive(Debug)]
pub struct LogOutput {
    pending: Vec<u8>,
    lost: u64,
    blocks: Option<SyncSender<Vec<u8>>>,
    finished: Receiver<()>,
}

impl LogOutput {
    /// Output to `sink`, by a thread that ends with [`finish`](LogOutput::finish).
    pub fn new(mut sink: impl Write + Send + 'static) -> LogOutput {
        let (blocks, received) = sync_channel::<Vec<u8>>(BLOCKS);
        let (ended, finished) = sync_channel(1);
        let writer = move || {
            for block in received {
                // Where standard error is gone there is nobody to tell.
                let _ = sink.write_all(&block);
                let _ = sink.flush();
            }
            let _ = ended.send(());
        };
        let started = std::thread::Builder::new().name("log".into()).spawn(writer);
        // Without the thread the channel is closed, and lines are dropped and counted.
        LogOutput { pending: Vec::new(), lost: 0, blocks: started.is_ok().then_some(blocks), finished }
    }

    /// Adds a line, which ends with a newline.
    pub fn push(&mut self, line: &str) {
        if self.pending.len() + line.len() > PENDING_OCTETS_MAX {
            self.lost += 1;
            return;
        }
        self.pending.extend_from_slice(line.as_bytes());
        if self.pending.len() >= BLOCK_OCTETS {
            self.flush();
        }
    }

    /// Hands the lines to the writing thread if it has room for them.
    pub fn flush(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let Some(blocks) = &self.blocks else {
            self.pending.clear();
            return;
        };
        let mut block = std::mem::take(&mut self.pending);
        if self.lost > 0 {
            let note = format!("WARN notice text=\"{} log lines were lost: they are read too slowly\"\n", self.lost);
            block.extend_from_slice(note.as_bytes());
        }
        match blocks.try_send(block) {
            Ok(()) => self.lost = 0,
            Err(TrySendError::Full(block)) => {
                self.pending = block;
            }
            Err(TrySendError::Disconnected(_)) => self.blocks = None,
        }
    }

    /// Writes what is left and ends the thread; waits at most two seconds.
    pub fn finish(&mut self) {
        let Some(blocks) = self.blocks.take() else { return };
        let rest = std::mem::take(&mut self.pending);
        // The thread may be stuck in a write, so that even this must not wait without end.
        let mut rest = Some(rest);
        for _ in 0..20 {
            match blocks.try_send(rest.take().unwrap_or_default()) {
                Err(TrySendError::Full(block)) => {
                    rest = Some(block);
                    std::thread::sleep(FINISH_TIME / 40);
                }
                _ => break,
            }
        }
        drop(blocks);
        let _ = self.finished.recv_timeout(FINISH_TIME / 2);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::sync::{Arc, Condvar, Mutex};

    /// What was written, and whether writing is allowed.
    #[derive(Clone, Default)]
    pub struct Written(Arc<Held>);

    type Held = (Mutex<(Vec<u8>, bool)>, Condvar);

    impl Written {
        /// All of it so far.
        pub fn text(&self) -> String {
            String::from_utf8(self.0.0.lock().unwrap().0.clone()).unwrap()
        }

        fn block(&self, blocked: bool) {
            self.0.0.lock().unwrap().1 = blocked;
            self.0.1.notify_all();
        }
    }

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let mut state = self.0.0.lock().unwrap();
            while state.1 {
                state = self.0.1.wait(state).unwrap();
            }
            state.0.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// Both ends of a place to write to.
    pub fn pipe() -> (Written, Written) {
        let written = Written::default();
        (written.clone(), written)
    }

    #[test]
    fn lines_come_out_in_order() {
        let (reader, sink) = pipe();
        let mut output = LogOutput::new(sink);
        for n in 0..1000 {
            output.push(&format!("{n}\n"));
            if n % 7 == 0 {
                output.flush();
            }
        }
        output.finish();
        let wanted: String = (0..1000).map(|n| format!("{n}\n")).collect();
        assert_eq!(reader.text(), wanted);
    }

    #[test]
    fn a_blocked_reader_costs_lines_but_never_waits_and_is_told_afterwards() {
        let (reader, sink) = pipe();
        reader.block(true);
        let mut output = LogOutput::new(sink);
        let line = format!("{}\n", "x".repeat(999));
        for _ in 0..20_000 {
            output.push(&line);
        }
        assert!(output.lost > 10_000);
        assert!(output.pending.len() <= PENDING_OCTETS_MAX);
        reader.block(false);
        while output.lost > 0 {
            output.flush();
            std::thread::yield_now();
        }
        output.finish();
        assert!(reader.text().contains("log lines were lost"));
    }
}
