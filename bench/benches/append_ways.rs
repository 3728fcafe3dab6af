//! The ways of appending to a segment, on real files and by plain blocking calls: what a group of records costs until
//! it is durable and has been read back for immediate delivery. docs/adr/0002-way-of-appending.md rests on it.
//!
//! Every way appends a group as the log does: on a fresh block, whole blocks, to a file that was written before. Read
//! back is what delivery needs at once: under O_DIRECT from the retained buffer (and, as a way of its own, from the
//! disk), else from the page cache or the map. `RINGPOST_BENCH_DIR` names a directory on the disk to measure (default:
//! the temporary directory; a RAM disk tells nothing). Run with `cargo bench -p ringpost-bench --bench append_ways`.
//!
//! No bound: it chooses between ways, on a disk that others use too. The way chosen (`Direct`) must not be the dearest
//! in CPU per record, nor write more than 1.1 bytes per byte appended in groups of 20 and more; else the decision is to
//! be made anew.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use memmap2::MmapMut;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fs::{File, OpenOptions};
use std::hint::black_box;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

const BLOCK: usize = 4096;
const FILE_LEN: usize = 64 * 1024 * 1024;
const GROUPS: [usize; 3] = [1, 20, 200];
const RECORD_LENS: [usize; 2] = [1024, 10 * 1024];

/// How bytes get into the file and how they become durable.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Way {
    /// O_DIRECT, then fdatasync; read back from the retained buffer.
    Direct,
    /// The same, but read back from the disk.
    DirectReread,
    /// O_DIRECT with O_DSYNC.
    DirectDsync,
    /// Through the page cache, then fdatasync.
    Buffered,
    /// A store into the map, then fdatasync.
    Map,
}

const WAYS: [Way; 5] = [Way::Direct, Way::DirectReread, Way::DirectDsync, Way::Buffered, Way::Map];

/// Memory aligned for O_DIRECT.
struct Aligned {
    start: *mut u8,
    layout: Layout,
}

impl Aligned {
    fn new(len: usize) -> Aligned {
        let layout = Layout::from_size_align(len, BLOCK).expect("a size below isize::MAX");
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        if start.is_null() {
            handle_alloc_error(layout);
        }
        Aligned { start, layout }
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the memory is ours alone, initialised and as long as the layout says.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.layout.size()) }
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        // SAFETY: allocated by `new` with this layout.
        unsafe { dealloc(self.start, self.layout) };
    }
}

/// What a way cost besides time.
#[derive(Default)]
struct Totals {
    groups: u64,
    cpu: Duration,
    stalls: Vec<Duration>,
    process_bytes: u64,
    device_bytes: u64,
}

/// A segment, opened for one way.
struct Segment {
    way: Way,
    file: File,
    map: Option<MmapMut>,
    path: PathBuf,
    buffer: Aligned,
    reread: Aligned,
    at: usize,
}

impl Segment {
    fn open(way: Way, group_len: usize) -> io::Result<Segment> {
        let directory = std::env::var_os("RINGPOST_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let path = directory.join(format!("ringpost-append-ways-{}.seg", std::process::id()));
        let mut new = OpenOptions::new();
        new.read(true).write(true).create(true).truncate(true);
        let file = new.open(&path)?;
        let zeros = vec![0; 1024 * 1024];
        for offset in (0..FILE_LEN).step_by(zeros.len()) {
            file.write_all_at(&zeros, offset as u64)?;
        }
        file.sync_all()?;
        let flags = match way {
            Way::Direct | Way::DirectReread => libc::O_DIRECT,
            Way::DirectDsync => libc::O_DIRECT | libc::O_DSYNC,
            Way::Buffered | Way::Map => 0,
        };
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(&path)?;
        let map = match way {
            // SAFETY: the file is this benchmark's own and nobody truncates it while the map lives.
            Way::Map => Some(unsafe { MmapMut::map_mut(&file)? }),
            _ => None,
        };
        let len = group_len.next_multiple_of(BLOCK);
        Ok(Segment { way, file, map, path, buffer: Aligned::new(len), reread: Aligned::new(len), at: 0 })
    }

    /// Appends one group and makes it durable; returns how long the thread was held up.
    fn append(&mut self, records: &[Vec<u8>]) -> io::Result<Duration> {
        let begun = Instant::now();
        let len = records.iter().map(Vec::len).sum::<usize>().next_multiple_of(BLOCK);
        if self.at + len > FILE_LEN {
            self.at = 0;
        }
        let target = match &mut self.map {
            Some(map) => &mut map[self.at..self.at + len],
            None => &mut self.buffer.bytes()[..len],
        };
        let mut filled = 0;
        for record in records {
            target[filled..filled + record.len()].copy_from_slice(record);
            filled += record.len();
        }
        target[filled..].fill(0);
        if self.map.is_none() {
            self.file.write_all_at(&self.buffer.bytes()[..len], self.at as u64)?;
        }
        if self.way != Way::DirectDsync {
            // SAFETY: the descriptor is open; no memory is passed.
            if unsafe { libc::fdatasync(self.file.as_raw_fd()) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        let held_up = begun.elapsed();
        self.read_back(len)?;
        self.at += len;
        Ok(held_up)
    }

    /// What delivery does at once: every byte is looked at.
    fn read_back(&mut self, len: usize) -> io::Result<()> {
        let bytes: &[u8] = match (&self.map, self.way) {
            (Some(map), _) => &map[self.at..self.at + len],
            (None, Way::Buffered | Way::DirectReread) => {
                let at = self.at as u64;
                let reread = self.reread.bytes();
                self.file.read_exact_at(&mut reread[..len], at)?;
                &reread[..len]
            }
            (None, _) => &self.buffer.bytes()[..len],
        };
        black_box(crc32c::crc32c(bytes));
        Ok(())
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// CPU time of this process.
fn cpu() -> Duration {
    // SAFETY: zero is a valid rusage, and the call fills it.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a whole rusage that lives through the call.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut usage) };
    let time = |t: libc::timeval| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1_000);
    time(usage.ru_utime) + time(usage.ru_stime)
}

/// Bytes that this process caused to be written, as the kernel counts them.
fn process_bytes() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    io.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.trim().parse().ok()).unwrap_or(0)
}

/// Bytes written to the block device that holds the file, by anybody; 0 where it has no statistics.
fn device_bytes(file: &File) -> u64 {
    let Ok(device) = file.metadata().map(|metadata| metadata.dev()) else {
        return 0;
    };
    let path = format!("/sys/dev/block/{}:{}/stat", libc::major(device), libc::minor(device));
    let stat = std::fs::read_to_string(path).unwrap_or_default();
    stat.split_whitespace().nth(6).and_then(|sectors| sectors.parse::<u64>().ok()).unwrap_or(0) * 512
}

fn run(segment: &mut Segment, records: &[Vec<u8>], iterations: u64, totals: &mut Totals) -> Duration {
    let (process, device, used, begun) = (process_bytes(), device_bytes(&segment.file), cpu(), Instant::now());
    for _ in 0..iterations {
        match segment.append(records) {
            Ok(held_up) => totals.stalls.push(held_up),
            Err(error) => panic!("{:?}: {error}", segment.way),
        }
    }
    let took = begun.elapsed();
    totals.groups += iterations;
    totals.cpu += cpu() - used;
    totals.process_bytes += process_bytes() - process;
    totals.device_bytes += device_bytes(&segment.file).saturating_sub(device);
    took
}

fn report(way: Way, group: usize, record_len: usize, totals: &mut Totals) {
    totals.stalls.sort_unstable();
    let at = |part: f64| totals.stalls[((totals.stalls.len() - 1) as f64 * part) as usize].as_micros();
    let appended = totals.groups * (group * record_len) as u64;
    println!(
        "{way:?} group {group} of {record_len}: cpu {:.1} us/record, written/appended {:.2} (process) {:.2} (device), \
         stall us p50 {} p99 {} max {}",
        totals.cpu.as_secs_f64() * 1e6 / (totals.groups * group as u64) as f64,
        totals.process_bytes as f64 / appended as f64,
        totals.device_bytes as f64 / appended as f64,
        at(0.5),
        at(0.99),
        at(1.0),
    );
}

fn append_ways(criterion: &mut Criterion) {
    for record_len in RECORD_LENS {
        for group in GROUPS {
            let mut measured = criterion.benchmark_group(format!("append_{group}_of_{record_len}"));
            measured.sample_size(10).warm_up_time(Duration::from_millis(200));
            measured.measurement_time(Duration::from_secs(1)).throughput(Throughput::Elements(group as u64));
            let records: Vec<Vec<u8>> = (0..group).map(|n| vec![n as u8 | 1; record_len]).collect();
            for way in WAYS {
                let mut segment = match Segment::open(way, group * record_len) {
                    Ok(segment) => segment,
                    Err(error) => {
                        println!("{way:?} is not possible here: {error}");
                        continue;
                    }
                };
                let mut totals = Totals::default();
                measured.bench_function(BenchmarkId::from_parameter(format!("{way:?}")), |bencher| {
                    bencher.iter_custom(|iterations| run(&mut segment, &records, iterations, &mut totals));
                });
                if totals.groups > 0 {
                    report(way, group, record_len, &mut totals);
                }
            }
            measured.finish();
        }
    }
}

criterion_group!(benches, append_ways);
criterion_main!(benches);
