//! Sets the guest up as the first process, starts all threads, and ends the guest when it is told to.

use std::convert::Infallible;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};
use std::{fs, io, panic, thread};

use nix::mount::{MsFlags, mount};
use nix::sys::signal::SigSet;
use thiserror::Error;

use crate::clocks::Rate;
use crate::finding::Finding;
use crate::fpu::Fpu;
use crate::heartbeat;
use crate::kernel_log::KernelLog;
use crate::load::{Load, LoadError};
use crate::mailbox::{Mailbox, damage_kind, phase};
use crate::memory::{self, MemoryError};
use crate::options::End;
use crate::page::{self, PageError};
use crate::part::{self, Part, Watched};
use crate::reporting::{self, Report};
use crate::storms::{Forks, Futexes, Pipes, Signals};
use crate::timers::{self, PosixTimer, TimerFile};

/// The guest's name in the mailbox.
const NAME: &str = "linux";
/// How often the threads' progress and the markers are looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Errors that end the agent before it runs.
#[derive(Debug, Error)]
pub enum InitError {
    /// A file system cannot be mounted.
    #[error("cannot mount {kind} on {target}: {source}")]
    Mount {
        /// Its type.
        kind: &'static str,
        /// Where.
        target: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The command line cannot be read.
    #[error("cannot read /proc/cmdline: {0}")]
    Cmdline(io::Error),
    /// The command line is invalid.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The mailbox cannot be mapped.
    #[error(transparent)]
    Page(#[from] PageError),
    /// The memory to check cannot be mapped.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A thread cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// The kernel's log cannot be opened.
    #[error("cannot open /dev/kmsg: {0}")]
    Log(io::Error),
    /// The clocks cannot be read.
    #[error("cannot measure the rate of the TSC: {0}")]
    Clock(nix::Error),
    /// Signals cannot be blocked.
    #[error("cannot block signals: {0}")]
    Signals(nix::Error),
}

/// Runs the agent; returns only if it cannot.
pub fn run() -> Result<Infallible, InitError> {
    for (kind, target) in [("proc", "/proc"), ("devtmpfs", "/dev"), ("tmpfs", "/tmp")] {
        mount_at(kind, target)?;
    }
    let line = fs::read_to_string("/proc/cmdline").map_err(InitError::Cmdline)?;
    let page = page::map()?;
    let load = Load::parse(&line);
    reporting::set_up(page, NAME, load.as_ref().map_or(0, |load| load.common.seed));
    panic::set_hook(Box::new(|info| panicked(page, &info.to_string())));
    match load.map_err(InitError::from).and_then(|load| serve(page, &load)) {
        Ok(never) => match never {},
        Err(error) => panicked(page, &error.to_string()),
    }
}

fn mount_at(kind: &'static str, target: &'static str) -> Result<(), InitError> {
    let wrong = |source| InitError::Mount { kind, target, source };
    fs::create_dir_all(target).map_err(wrong)?;
    let mounted = mount(None::<&str>, target, Some(kind), MsFlags::empty(), None::<&str>);
    mounted.map_err(|e| wrong(e.into()))
}

fn panicked(page: &Mailbox, what: &str) -> ! {
    let report = Report { kind: damage_kind::PANIC, ..Report::default() };
    page::report(page, 0, &Finding { report, text: what.replace('\n', " ") })
}

fn serve(page: &'static Mailbox, load: &Load) -> Result<Infallible, InitError> {
    page.phase.store(phase::PREPARING, Release);
    block_signals().map_err(InitError::Signals)?;
    let rate = match load.wants("clocks") {
        true => Some(Rate::measure().map_err(InitError::Clock)?),
        false => None,
    };
    say("measured the TSC");
    start_log(page, load)?;
    let watched = start_parts(page, load)?;
    say("started all threads");
    start_heartbeats(page, load, rate)?;
    page.phase.store(phase::RUNNING, Release);
    say("runs");
    watch(page, load, watched)
}

/// Prints on the console how far the agent is.
fn say(what: &str) {
    eprintln!("linux-agent: {what}");
}

/// Blocks the signals that threads wait for; new threads inherit it.
fn block_signals() -> nix::Result<()> {
    let mut set = SigSet::from(timers::SIGNAL);
    // SAFETY: `SigSet` is a `sigset_t`, and the signal is valid. It has no name there.
    unsafe { libc::sigaddset(std::ptr::from_mut(&mut set).cast(), Signals::signal()) };
    set.thread_block()
}

/// Starts the thread that reads the kernel's log. It is not watched: a healthy kernel says nothing.
fn start_log(page: &'static Mailbox, load: &Load) -> Result<(), InitError> {
    if !load.wants("log") {
        return Ok(());
    }
    let mut log = KernelLog::open(load.whole_log).map_err(InitError::Log)?;
    let whole = load.whole_log;
    // The harness asks for gaps when it begins an update.
    let counts = move || whole || page.gap_request.load(Acquire) > 0;
    let part = Part { name: "log".into(), cpu: 0, rest: Duration::ZERO };
    part::start(page, part, move || log.next(counts)).map(drop).map_err(InitError::Thread)
}

/// Starts the heartbeats of all vCPUs, and waits until all run.
fn start_heartbeats(
    page: &'static Mailbox,
    load: &Load,
    rate: Option<Rate>,
) -> Result<(), InitError> {
    let (cpus, rest) = (load.common.cpus, load.rest);
    let ready = Arc::new(Barrier::new(cpus + 1));
    for cpu in 0..cpus {
        let ready = ready.clone();
        let body = move || heartbeat::run(page, cpu, rest, rate, &ready);
        thread::Builder::new().spawn(body).map_err(InitError::Thread)?;
    }
    ready.wait();
    Ok(())
}

fn start_parts(page: &'static Mailbox, load: &Load) -> Result<Vec<Watched>, InitError> {
    let mut all = Vec::new();
    let cpus = load.common.cpus;
    let part = |name: &str, cpu: usize| {
        let name = format!("{name} on CPU {cpu}");
        Part { name, cpu, rest: load.rest }
    };
    let mut add = |watched: io::Result<Watched>| watched.map(|one| all.push(one));
    let started = |result: io::Result<()>| result.map_err(InitError::Thread);
    if load.wants("memory") {
        for mut share in memory::map(page, load.memory, cpus, load.common.seed)? {
            let part = part("memory", share.cpu());
            started(add(part::start(page, part, move || share.round(page))))?;
        }
    }
    if load.wants("fpu") {
        // Two threads on each vCPU, between which it switches.
        for number in 0..2 * cpus {
            let fpu = Fpu::new(number as u64);
            started(add(part::start(page, part("fpu", number % cpus), move || fpu.round())))?;
        }
    }
    let last = cpus - 1;
    if load.wants("timers") {
        let interval = 2 * load.rest;
        let file = move || {
            let mut timer = TimerFile::start(interval)?;
            Ok(move || timer.round())
        };
        started(add(part::begin(page, part("timerfd", 0), file)))?;
        // Its signals go to the thread that starts it.
        let posix = move || {
            let mut timer = PosixTimer::start(interval)?;
            Ok(move || timer.round())
        };
        started(add(part::begin(page, part("POSIX timer", last), posix)))?;
    }
    if load.wants("storms") {
        let mut futexes = Futexes::start(last).map_err(InitError::Thread)?;
        started(add(part::start(page, part("futexes", 0), move || futexes.round())))?;
        let mut pipes = Pipes::start(0).map_err(InitError::Thread)?;
        started(add(part::start(page, part("pipes", last), move || pipes.round())))?;
        let mut signals = Signals::start();
        started(add(part::start(page, part("signals", 0), move || signals.round())))?;
        let mut forks = Forks::start();
        let slower = Part { rest: 10 * load.rest, ..part("forks", last) };
        started(add(part::start(page, slower, move || forks.round())))?;
    }
    Ok(all)
}

/// Watches the threads, shows the markers, and ends the guest after the last.
fn watch(
    page: &'static Mailbox,
    load: &Load,
    mut watched: Vec<Watched>,
) -> Result<Infallible, InitError> {
    let mut marker = 0;
    loop {
        for one in &mut watched {
            if let Err(finding) = one.judge(Instant::now()) {
                page::report(page, 0, &finding);
            }
        }
        if marker <= load.common.markers && page.marker_go.load(Acquire) >= marker {
            marker += 1;
            match marker <= load.common.markers {
                true => page.marker.store(marker, Release),
                false => end(load.common.end),
            }
        }
        thread::sleep(LOOK);
    }
}

/// Ends the guest as the command line says, or returns.
fn end(how: End) {
    let command = match how {
        End::Never => return,
        End::Reset | End::Triple => libc::RB_AUTOBOOT,
        End::Exit => libc::RB_POWER_OFF,
    };
    // SAFETY: a number; the call returns only if it fails.
    unsafe { libc::reboot(command) };
    panic!("cannot end the guest: {}", io::Error::last_os_error());
}
