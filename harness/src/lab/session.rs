//! Runs a command in a lab, from the first instruction to the last byte of its output.

use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};

use super::error::LabError;
use super::machine::{Machine, Ports};
use super::messages::{self, Report, Request};
use super::settings::{Command, Terminals};
use super::{Lab, terminal};
use crate::observe::poll::Deadline;
use crate::process::signals::{self, Ending};

/// How long a lab may take to start the command; an emulated one on a busy host takes a minute.
const START: Duration = Duration::from_secs(240);

/// How long a command may take to end after a signal.
const SIGNALLED: Duration = Duration::from_millis(1500);

/// How long a command may take to end after its time is over.
const TERMINATED: Duration = Duration::from_secs(30);

/// How long the lab may send nothing of the rest of the output after the end of the command.
const OUTPUT: Duration = Duration::from_secs(10);

/// How long QEMU may take to exit after SIGKILL.
const KILLED: Duration = Duration::from_secs(1);

/// The key that ends a lab whose terminal is raw: Ctrl-], as in telnet.
const ESCAPE: u8 = 0x1d;

/// A limit for waits that have none.
const LONG: Duration = Duration::from_secs(365 * 24 * 3600);

/// The size of the buffers for input and output.
const CHUNK: usize = 32 << 10;

/// What happens while a lab runs.
pub enum Event {
    /// The lab reports.
    Report(Report),
    /// This many bytes of standard output (0) or error (1) were passed on.
    Written(usize, u64),
    /// Standard output or error outside cannot be written to.
    Unwritable(io::Error),
    /// This signal asks for the end.
    Signal(Signal),
    /// The terminal's size may have changed.
    Resized,
    /// QEMU ended.
    Died(io::Result<ExitStatus>),
}

/// The events of a lab that is to run; created first, before other threads exist.
pub struct Events {
    sender: Sender<Event>,
    receiver: Receiver<Event>,
}

/// How a lab ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The command ended with this status.
    Ended(u8),
    /// This signal ended the lab.
    Signalled(Signal),
}

impl Events {
    /// Has signals end the lab. Call it before other threads exist.
    pub fn new() -> Self {
        let (sender, receiver) = mpsc::channel();
        let asked = sender.clone();
        signals::guard(Ending::Asked(Box::new(move |signal| {
            asked.send(Event::Signal(signal)).is_ok()
        })));
        watch_size(sender.clone());
        Self { sender, receiver }
    }

    /// Runs `command` in `lab`; calls `started` when it has started. Returns the folder that was kept, too.
    pub fn run(
        self,
        lab: &Lab,
        command: Command,
        started: impl FnOnce(),
    ) -> Result<(Outcome, Option<PathBuf>), LabError> {
        // A terminal is read by a shell only: a lab in the background would be stopped.
        let input = match command.terminals {
            Terminals { cooked: true, .. } => Input::Keys,
            Terminals { stdin: true, .. } => Input::None,
            _ => Input::Stream,
        };
        let (machine, child, ports) = Machine::start(lab, command)?;
        let copy = |port: &UnixStream| port.try_clone().map_err(LabError::prepare("copy a socket"));
        let (control, stdin) = (copy(&ports.control)?, copy(&ports.stdin)?);
        let writing = Arc::new(AtomicUsize::new(0));
        let watched = self.watch(child, ports, input, &writing);
        watched.map_err(LabError::prepare("start a thread"))?;
        let Self { sender, receiver } = self;
        drop(sender);
        let mut session = Session {
            machine,
            control,
            _stdin: stdin,
            events: receiver,
            timeout: lab.timeout,
            writing,
            timed_out: false,
            seen: [0; 2],
            died: false,
        };
        let outcome = session.run(started);
        // First: no process of the lab outlives its result.
        session.end();
        let kept = if lab.keep { session.machine.keep() } else { None };
        outcome.map(|outcome| (outcome, kept))
    }

    /// Starts the threads that pass data and events on.
    fn watch(
        &self,
        mut child: Child,
        ports: Ports,
        input: Input,
        writing: &Arc<AtomicUsize>,
    ) -> io::Result<()> {
        let sender = self.sender.clone();
        start(move || sender.send(Event::Died(child.wait())).map_or((), drop))?;
        let sender = self.sender.clone();
        let mut control = BufReader::new(ports.control);
        start(move || {
            while let Ok(Some(report)) = messages::receive(&mut control) {
                if sender.send(Event::Report(report)).is_err() {
                    return;
                }
            }
        })?;
        let (sender, count) = (self.sender.clone(), writing.clone());
        start(move || pass_on(ports.stdout, io::stdout(), 0, &sender, &count))?;
        let (sender, count) = (self.sender.clone(), writing.clone());
        start(move || pass_on(ports.stderr, io::stderr(), 1, &sender, &count))?;
        let sender = self.sender.clone();
        start(move || feed(io::stdin(), ports.stdin, input, &sender))
    }
}

/// What the lab gets of standard input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Input {
    /// Nothing.
    None,
    /// All of it.
    Stream,
    /// The keys of a raw terminal, up to [`ESCAPE`].
    Keys,
}

impl Default for Events {
    fn default() -> Self {
        Self::new()
    }
}

struct Session {
    machine: Machine,
    control: UnixStream,
    /// QEMU drops what it has not passed on when this is closed; its end is a shutdown.
    _stdin: UnixStream,
    events: Receiver<Event>,
    timeout: Option<Duration>,
    /// How many threads wait for standard output or error outside to take data.
    writing: Arc<AtomicUsize>,
    /// Whether the command was asked to end because its time is over.
    timed_out: bool,
    /// Bytes of standard output and error that were passed on.
    seen: [u64; 2],
    /// Whether QEMU has exited.
    died: bool,
}

/// What a session waits for.
#[derive(Clone, Copy)]
enum Phase {
    /// The start of the command.
    Start,
    /// Its end.
    Run,
    /// Its end, after this signal.
    Signalled(Signal),
    /// The rest of its output, until this many bytes have arrived; then this status is the result.
    Output([u64; 2], u8),
}

impl Session {
    fn run(&mut self, started: impl FnOnce()) -> Result<Outcome, LabError> {
        let mut started = Some(started);
        let mut phase = Phase::Start;
        let mut deadline = Deadline::after(START);
        // Of the command, with its restarts.
        let mut end = None;
        loop {
            if let Phase::Output(written, status) = phase
                && self.seen == written
            {
                return self.result(status);
            }
            let event = match self.events.recv_timeout(deadline.remaining()) {
                Ok(event) => event,
                Err(RecvTimeoutError::Timeout) if self.is_waited_for(phase) => {
                    deadline = Deadline::after(OUTPUT);
                    continue;
                }
                Err(RecvTimeoutError::Timeout)
                    if matches!(phase, Phase::Run) && !self.timed_out =>
                {
                    self.timed_out = true;
                    self.ask(Request::Signal(Signal::SIGTERM as i32));
                    deadline = Deadline::after(TERMINATED);
                    continue;
                }
                Err(RecvTimeoutError::Timeout) => return self.late(phase, deadline.limit()),
                // The thread that waits for QEMU reports its end before it ends itself.
                Err(RecvTimeoutError::Disconnected) => return self.late(phase, Duration::ZERO),
            };
            match event {
                Event::Report(Report::Started) => {
                    if let Some(started) = started.take() {
                        started();
                    }
                    if matches!(phase, Phase::Start) {
                        phase = Phase::Run;
                        let limit = self.timeout.unwrap_or(LONG).min(LONG);
                        deadline = *end.get_or_insert_with(|| Deadline::after(limit));
                        self.machine.booted();
                    }
                }
                Event::Report(Report::Restarting) => {
                    if matches!(phase, Phase::Run) {
                        phase = Phase::Start;
                        deadline = Deadline::after(START);
                    }
                }
                Event::Report(Report::Ended { status, written }) => {
                    phase = Phase::Output(written, status);
                    deadline = Deadline::after(OUTPUT);
                }
                Event::Report(Report::Failed(why)) => {
                    return Err(LabError::Failed { why, log: self.machine.log() });
                }
                Event::Written(stream, bytes) => {
                    self.seen[stream] += bytes;
                    if matches!(phase, Phase::Output(..)) {
                        deadline = Deadline::after(OUTPUT);
                    }
                }
                Event::Unwritable(source) if source.kind() != ErrorKind::BrokenPipe => {
                    return Err(LabError::Unwritable { source });
                }
                event @ (Event::Unwritable(_) | Event::Signal(_)) => {
                    let signal = match event {
                        Event::Signal(signal) => signal,
                        _ => Signal::SIGPIPE,
                    };
                    if matches!(phase, Phase::Start | Phase::Output(..)) {
                        return Ok(Outcome::Signalled(signal));
                    }
                    self.ask(Request::Signal(signal as i32));
                    if matches!(phase, Phase::Run) {
                        phase = Phase::Signalled(signal);
                        deadline = Deadline::after(SIGNALLED);
                    }
                }
                Event::Resized => {
                    if let Some((rows, columns)) = terminal::size() {
                        self.ask(Request::Size(rows, columns));
                    }
                }
                Event::Died(status) => {
                    self.died = true;
                    let status = status.map_err(LabError::prepare("wait for QEMU"))?;
                    return match phase {
                        Phase::Signalled(signal) => Ok(Outcome::Signalled(signal)),
                        _ => Err(LabError::Died { status, log: self.machine.log() }),
                    };
                }
            }
        }
    }

    /// The result of a command that ended with this status, and all of its output.
    fn result(&mut self, status: u8) -> Result<Outcome, LabError> {
        if !self.timed_out {
            return Ok(Outcome::Ended(status));
        }
        let limit = self.timeout.unwrap_or_default();
        Err(LabError::Timeout { limit, log: self.machine.log() })
    }

    /// True if the rest of the output waits for a reader outside.
    fn is_waited_for(&self, phase: Phase) -> bool {
        matches!(phase, Phase::Output(..)) && self.writing.load(Ordering::Relaxed) > 0
    }

    /// Kills QEMU, unless it has exited, and waits for that.
    fn end(&mut self) {
        if self.died {
            return;
        }
        self.machine.kill();
        let deadline = Deadline::after(KILLED);
        while let Ok(event) = self.events.recv_timeout(deadline.remaining()) {
            if matches!(event, Event::Died(_)) {
                return;
            }
        }
    }

    /// What it means that nothing happened for `limit`.
    fn late(&mut self, phase: Phase, limit: Duration) -> Result<Outcome, LabError> {
        let log = match phase {
            Phase::Signalled(signal) => return Ok(Outcome::Signalled(signal)),
            _ => self.machine.log(),
        };
        Err(match phase {
            Phase::Start => LabError::Late { limit, log },
            Phase::Output(written, _) => {
                LabError::Incomplete { seen: self.seen, written, limit, log }
            }
            Phase::Run | Phase::Signalled(_) => {
                LabError::Timeout { limit: self.timeout.unwrap_or(limit), log }
            }
        })
    }

    /// Sends a request. A lab that has died is reported by QEMU's end.
    fn ask(&self, request: Request) {
        let _ = messages::send(&self.control, &request);
    }
}

/// Starts a thread that ends with this process.
fn start(run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name("lab".into()).spawn(run).map(drop)
}

/// Reports changes of the terminal's size. The signal is blocked in all threads.
fn watch_size(sender: Sender<Event>) {
    let mut resized = SigSet::empty();
    resized.add(Signal::SIGWINCH);
    // Without it, the terminal inside keeps its first size.
    if resized.thread_block().is_ok() {
        let _ =
            start(move || while resized.wait().is_ok() && sender.send(Event::Resized).is_ok() {});
    }
}

/// Writes what comes from a port to standard output (0) or error (1).
///
/// What cannot be written is dropped, so that the command can end.
fn pass_on(
    mut port: UnixStream,
    mut to: impl Write,
    stream: usize,
    sender: &Sender<Event>,
    writing: &AtomicUsize,
) {
    let mut broken = false;
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = match port.read(&mut buffer) {
            Ok(0) => return,
            Ok(read) => read,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        if !broken {
            writing.fetch_add(1, Ordering::Relaxed);
            let written = to.write_all(&buffer[..read]).and_then(|()| to.flush());
            writing.fetch_sub(1, Ordering::Relaxed);
            if let Err(e) = written {
                broken = true;
                let _ = sender.send(Event::Unwritable(e));
            }
        }
        if sender.send(Event::Written(stream, read as u64)).is_err() {
            return;
        }
    }
}

/// Passes input on to the lab, and its end.
fn feed(from: impl Read, mut port: UnixStream, input: Input, sender: &Sender<Event>) {
    if input != Input::None {
        pass_in(from, &mut port, input == Input::Keys, sender);
    }
    let _ = port.shutdown(Shutdown::Write);
}

fn pass_in(mut from: impl Read, port: &mut UnixStream, keys: bool, sender: &Sender<Event>) {
    let mut buffer = vec![0; CHUNK];
    loop {
        let bytes = match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(read) => &buffer[..read],
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        if keys && bytes.contains(&ESCAPE) {
            // What was typed before it is dropped: a lab that hangs takes nothing.
            let _ = sender.send(Event::Signal(Signal::SIGTERM));
            return;
        }
        // An error means that the lab has ended.
        if port.write_all(bytes).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fed(input: Input, bytes: &[u8]) -> (Vec<u8>, bool) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (sender, events) = mpsc::channel();
        feed(bytes, ours, input, &sender);
        let mut passed_on = Vec::new();
        theirs.read_to_end(&mut passed_on).unwrap();
        (passed_on, matches!(events.try_recv(), Ok(Event::Signal(Signal::SIGTERM))))
    }

    #[test]
    fn escape_key_ends_the_lab_only_at_a_terminal() {
        assert_eq!(fed(Input::Keys, b"ls\n"), (b"ls\n".to_vec(), false));
        assert_eq!(fed(Input::Keys, b"\x1d"), (vec![], true));
        assert_eq!(fed(Input::Stream, b"a\x1db"), (b"a\x1db".to_vec(), false));
        assert_eq!(fed(Input::None, b"a"), (vec![], false));
    }
}
