//! How log lines get to standard output or standard error: bounded queues, and a thread that writes.
//!
//! A thread that logs never waits for the reader of the log. A pipe that nobody empties, a stopped terminal or a log
//! driver that hangs blocks only the writing thread. Lines wait in the queue of their kind. When the queue is full,
//! lines are dropped and counted, and the log says so as soon as it is read again. Audit events are the last to be
//! lost: they have a queue of their own, which is four times as long and is written first.
//!
//! Lines are written after a few milliseconds and many at a time, because a system call per line would cost more than a
//! session check. Errors and audit events don't wait for others.
use std::io::IoSlice;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use metrics::counter;
use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::io::Errno;

use crate::metrics::LOG_LINES_LOST;

/// A line waits at most this long for others.
const GATHER: Duration = Duration::from_millis(20);
/// As soon as this many bytes wait, they are written. At most this many are written at once, so that audit events don't
/// wait for long.
const PIECE: usize = 64 * 1024;
/// The most bytes of a line, including its line feed.
pub(super) const LINE_LIMIT: usize = 8 * 1024;
/// [`Output::flush`] waits at most this long, so that a process can end even if nobody reads its log.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Which queue a line waits in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Audit,
    Other,
    Request,
}

impl Kind {
    /// All kinds, in the order in which they are written.
    const ALL: [Self; 3] = [Self::Audit, Self::Other, Self::Request];

    /// The most bytes that wait: a few thousand lines.
    const fn limit(self) -> usize {
        match self {
            Self::Audit => 4 * 1024 * 1024,
            Self::Other | Self::Request => 1024 * 1024,
        }
    }

    fn count_lost(self, lines: u64) {
        let kind = match self {
            Self::Audit => "audit",
            Self::Other => "other",
            Self::Request => "request",
        };
        counter!(LOG_LINES_LOST, "kind" => kind).increment(lines);
    }
}

/// The waiting lines of one kind.
#[derive(Debug, Default)]
struct Queue {
    lines: Vec<u8>,
    /// Bytes that were ever put into the queue.
    accepted: u64,
    /// How many of those have been written or lost.
    finished: u64,
    /// Lost lines that the log has not mentioned yet.
    lost: u64,
}

#[derive(Debug, Default)]
struct Waiting {
    queues: [Queue; 3],
    /// Whether the writer should start at once.
    is_urgent: bool,
}

impl Waiting {
    fn queue(&mut self, kind: Kind) -> &mut Queue {
        &mut self.queues[kind as usize]
    }

    fn is_empty(&self) -> bool {
        self.queues.iter().all(|queue| queue.lines.is_empty())
    }
}

/// Lines that were taken from a queue to be written.
#[derive(Debug)]
struct Piece {
    kind: Kind,
    lines: Vec<u8>,
    written: usize,
}

impl Piece {
    fn rest(&self) -> &[u8] {
        &self.lines[self.written..]
    }
}

/// The log's destination, and the lines that wait for it.
pub(super) struct Output {
    descriptor: Box<dyn AsFd + Send + Sync>,
    /// Whether the destination is a file. Writing to a file doesn't block, since nobody has to read it.
    is_file: bool,
    waiting: Mutex<Waiting>,
    /// Locked while writing, which may never end.
    piece: Mutex<Piece>,
    filled: Condvar,
    finished: Condvar,
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Output").field("is_file", &self.is_file).finish_non_exhaustive()
    }
}

impl Output {
    pub(super) fn new(descriptor: impl AsFd + Send + Sync + 'static) -> Self {
        let is_file = rustix::fs::fstat(descriptor.as_fd())
            .is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file());
        Self {
            descriptor: Box::new(descriptor),
            is_file,
            waiting: Mutex::default(),
            piece: Mutex::new(Piece { kind: Kind::Other, lines: Vec::new(), written: 0 }),
            filled: Condvar::new(),
            finished: Condvar::new(),
        }
    }

    /// Puts a line into its queue, or counts it as lost if that is full. `line` appends at most [`LINE_LIMIT`] bytes.
    pub(super) fn append(&self, kind: Kind, line: impl FnOnce(&mut Vec<u8>)) {
        let mut waiting = self.waiting.lock();
        let queue = waiting.queue(kind);
        let before = queue.lines.len();
        if before + LINE_LIMIT > kind.limit() {
            queue.lost += 1;
            drop(waiting);
            kind.count_lost(1);
            return;
        }
        line(&mut queue.lines);
        let length = queue.lines.len();
        queue.accepted += (length - before) as u64;
        if length > PIECE {
            self.hurry(waiting);
        } else if before == 0 {
            drop(waiting);
            self.filled.notify_one();
        }
    }

    /// Writes the lines of this kind now if that can't block. Otherwise wakes the writing thread to write them.
    pub(super) fn send(&self, kind: Kind) {
        let piece = if self.is_file { Some(self.piece.lock()) } else { self.piece.try_lock() };
        let Some(mut piece) = piece else { return self.hurry(self.waiting.lock()) };
        if self.is_file {
            self.write_out(&mut piece);
            self.take(kind, &mut piece);
            self.write_out(&mut piece);
            return;
        }
        if piece.rest().is_empty() {
            self.take(kind, &mut piece);
            if let Ok(count) = write_without_blocking(&*self.descriptor, piece.rest()) {
                piece.written = count;
            }
            if piece.rest().is_empty() {
                self.finish(&mut piece);
                return;
            }
        }
        self.hurry(self.waiting.lock());
    }

    /// Waits until every line so far is written, but at most for [`FLUSH_TIMEOUT`].
    pub(super) fn flush(&self) {
        let deadline = Instant::now() + FLUSH_TIMEOUT;
        let mut waiting = self.waiting.lock();
        let targets = waiting.queues.each_ref().map(|queue| queue.accepted);
        waiting.is_urgent = true;
        self.filled.notify_one();
        let is_behind =
            |waiting: &mut Waiting| waiting.queues.iter().zip(targets).any(|(queue, target)| queue.finished < target);
        self.finished.wait_while_until(&mut waiting, is_behind, deadline);
    }

    /// The loop of the writing thread.
    pub(super) fn run(&self) -> ! {
        loop {
            let mut waiting = self.waiting.lock();
            self.filled.wait_while(&mut waiting, |waiting| waiting.is_empty() && !waiting.is_urgent);
            self.filled.wait_while_for(&mut waiting, |waiting| !waiting.is_urgent, GATHER);
            waiting.is_urgent = false;
            drop(waiting);
            if self.write_each() {
                self.say_what_was_lost();
            }
        }
    }

    fn hurry(&self, mut waiting: MutexGuard<'_, Waiting>) {
        if !std::mem::replace(&mut waiting.is_urgent, true) {
            drop(waiting);
            self.filled.notify_one();
        }
    }

    /// Finishes the piece that was begun, then writes one of each kind. Returns whether the system took all of it.
    fn write_each(&self) -> bool {
        let mut piece = self.piece.lock();
        let mut is_taken = self.write_out(&mut piece);
        for kind in Kind::ALL {
            self.take(kind, &mut piece);
            is_taken &= self.write_out(&mut piece);
        }
        is_taken
    }

    /// Takes the oldest lines of a kind out of its queue, [`PIECE`] bytes at most.
    fn take(&self, kind: Kind, piece: &mut Piece) {
        piece.lines.clear();
        piece.lines.shrink_to(2 * PIECE);
        (piece.kind, piece.written) = (kind, 0);
        let mut waiting = self.waiting.lock();
        let lines = &mut waiting.queue(kind).lines;
        if lines.len() <= PIECE {
            std::mem::swap(lines, &mut piece.lines);
            return;
        }
        let end = lines[..PIECE].iter().rposition(|&byte| byte == b'\n').map_or(PIECE, |last| last + 1);
        piece.lines.extend(lines.drain(..end));
        lines.shrink_to(2 * PIECE);
        waiting.is_urgent = true;
    }

    /// Writes a piece, however long that takes. Returns whether the system took it. If not, its lines are lost.
    fn write_out(&self, piece: &mut Piece) -> bool {
        while !piece.rest().is_empty() {
            match rustix::io::write(&*self.descriptor, piece.rest()) {
                Ok(count) => piece.written += count,
                Err(Errno::INTR) => {}
                // Another process that shares the descriptor made it non-blocking.
                Err(Errno::AGAIN) => std::thread::sleep(GATHER),
                Err(_) => {
                    let lost = piece.rest().split_inclusive(|&byte| byte == b'\n').count() as u64;
                    piece.kind.count_lost(lost);
                    self.waiting.lock().queue(piece.kind).lost += lost;
                    self.finish(piece);
                    return false;
                }
            }
        }
        self.finish(piece);
        true
    }

    fn finish(&self, piece: &mut Piece) {
        if !piece.lines.is_empty() {
            self.waiting.lock().queue(piece.kind).finished += piece.lines.len() as u64;
            self.finished.notify_all();
            piece.lines.clear();
            piece.written = 0;
        }
    }

    /// Logs how many lines were lost. Call it only while lines can be written, or this line would be lost too.
    fn say_what_was_lost(&self) {
        let mut waiting = self.waiting.lock();
        let [audit, other, request] = Kind::ALL.map(|kind| std::mem::take(&mut waiting.queue(kind).lost));
        drop(waiting);
        if audit + other + request > 0 {
            tracing::warn!(audit, other, request, "log lines were lost: nobody read them in time");
        }
    }
}

/// Writes as many bytes as fit without blocking.
#[cfg(target_os = "linux")]
fn write_without_blocking(descriptor: &dyn AsFd, bytes: &[u8]) -> rustix::io::Result<usize> {
    // Pipes and sockets support the flag. Other kinds of files may refuse it.
    const WHERE_IT_STANDS: u64 = u64::MAX;
    rustix::io::pwritev2(descriptor, &[IoSlice::new(bytes)], WHERE_IT_STANDS, rustix::io::ReadWriteFlags::NOWAIT)
}

#[cfg(not(target_os = "linux"))]
fn write_without_blocking(_: &dyn AsFd, _: &[u8]) -> rustix::io::Result<usize> {
    Err(Errno::AGAIN)
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, Read as _};
    use std::sync::Arc;

    use super::*;

    const LINE: &str = "a line\n";

    /// An output that goes into a pipe, with its writing thread.
    fn piped() -> (Arc<Output>, PipeReader) {
        let (reader, descriptor) = std::io::pipe().unwrap();
        let output = Arc::new(Output::new(descriptor));
        let writing = Arc::clone(&output);
        std::thread::spawn(move || writing.run());
        (output, reader)
    }

    fn say(output: &Output, kind: Kind, text: &str) {
        output.append(kind, |out| out.extend_from_slice(text.as_bytes()));
    }

    fn read(reader: &mut PipeReader, bytes: usize) -> String {
        let mut buffer = vec![0; bytes];
        reader.read_exact(&mut buffer).unwrap();
        String::from_utf8(buffer).unwrap()
    }

    #[test]
    fn lines_arrive_in_the_order_of_their_kind() {
        let (output, mut reader) = piped();
        for kind in [Kind::Request, Kind::Audit, Kind::Request] {
            say(&output, kind, LINE);
            output.send(kind);
            assert_eq!(read(&mut reader, LINE.len()), LINE);
        }
        output.flush();
    }

    /// Covers `flush` too: a thread that panics or ends the process continues after a while.
    #[test]
    fn nobody_waits_for_a_reader() {
        let (output, mut reader) = piped();
        let text = format!("{}\n", "x".repeat(LINE_LIMIT - 1));
        // More than the pipe holds: the writer blocks whenever it starts, and can't report what was lost meanwhile.
        for _ in 0..20 {
            say(&output, Kind::Other, &text);
        }
        for _ in 0..200 {
            say(&output, Kind::Request, &text);
        }
        for _ in 0..200 {
            say(&output, Kind::Audit, LINE);
            output.send(Kind::Audit);
        }
        output.flush();
        let lost = output.waiting.lock().queue(Kind::Request).lost;
        assert!((1..200).contains(&lost), "{lost}");
        assert_eq!(output.waiting.lock().queue(Kind::Audit).lost, 0);

        // All lines are whole, and audit events come before most of the others, though they were logged later.
        let all = usize::try_from(220 - lost).unwrap() * text.len() + 200 * LINE.len();
        let read = read(&mut reader, all);
        assert!(read.lines().all(|line| line == LINE.trim_end() || line == text.trim_end()));
        let end = read.rfind(LINE).unwrap();
        assert!(read[..end].lines().filter(|line| line.starts_with('x')).count() < 30);
    }

    #[test]
    fn a_closed_output_loses_lines_and_nothing_else() {
        // Not a pipe: a process that another test forks meanwhile would hold the other end open until it calls exec.
        let (descriptor, reader) = std::os::unix::net::UnixStream::pair().unwrap();
        reader.shutdown(std::net::Shutdown::Both).unwrap();
        let output = Arc::new(Output::new(descriptor));
        let writing = Arc::clone(&output);
        std::thread::spawn(move || writing.run());
        for kind in Kind::ALL {
            say(&output, kind, LINE);
            output.send(kind);
            // No flush: it makes the writer report what was lost and reset the count.
            let is_lost = (0..200).any(|_| {
                std::thread::sleep(GATHER);
                output.waiting.lock().queue(kind).lost == 1
            });
            assert!(is_lost, "{kind:?}");
        }
    }

    /// A parent that shares the descriptor may have made it so.
    #[test]
    fn a_non_blocking_output_gets_whole_lines() {
        let (mut reader, descriptor) = std::io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&descriptor, true).unwrap();
        let output = Arc::new(Output::new(descriptor));
        let writing = Arc::clone(&output);
        std::thread::spawn(move || writing.run());
        let text = format!("{}\n", "x".repeat(LINE_LIMIT - 1));
        (0..50).for_each(|_| say(&output, Kind::Other, &text));
        std::thread::sleep(3 * GATHER);
        assert_eq!(read(&mut reader, 50 * text.len()), text.repeat(50));
    }
}
