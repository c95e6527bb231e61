//! Logging that never waits for a reader, nor for a thread that has ended or hangs.
//!
//! The thread that logs a line writes it at once if the sink accepts it, so that it is out before
//! an exec; otherwise the line waits in an [`Outlet`] for the main loop.

mod level;
mod outlet;
mod sink;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::Display;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nix::sys::eventfd::EventFd;
use tracing_subscriber::filter::LevelFilter;

use crate::same_file::names;
pub use level::LogLevel;
use outlet::Outlet;
use sink::Sink;

/// The name of the log file's descriptor in an update.
pub const LOG_FD: &str = "log.file";

/// The log file could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("--log-file: cannot open {path}: {source}")]
pub struct LogError {
    path: PathBuf,
    source: std::io::Error,
}

/// Lines on their way to standard error.
static STDERR: Outlet = Outlet::new(Sink::Stderr);
/// Lines on their way to the log file, if there is one.
static FILE: OnceLock<Outlet> = OnceLock::new();
/// Wakes the main loop when lines begin to wait for a reader.
static WAKE: OnceLock<Arc<EventFd>> = OnceLock::new();

/// How long exit waits for a reader of the last lines.
const LAST_LINES: Duration = Duration::from_millis(200);

fn put(outlet: &Outlet, lines: &[u8]) {
    if outlet.put(lines)
        && let Some(wake) = WAKE.get()
    {
        // The counter is full only if a wake-up is pending anyway.
        let _ = wake.write(1);
    }
}

/// The writer for `tracing`, which writes each line with one call.
struct Lines(&'static Outlet);

impl Write for Lines {
    fn write(&mut self, lines: &[u8]) -> std::io::Result<usize> {
        put(self.0, lines);
        Ok(lines.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Reports why the VMM exits: in one line on stderr, and in the log if that is a file.
pub fn fatal(error: &dyn Display) {
    if FILE.get().is_some() {
        tracing::error!(%error, "fatal");
    }
    say(format_args!("cpr-vmm: {error}"));
}

/// Reports something to the operator that is not an error: in one line on stderr, and in the log
/// if that is a file.
pub fn notice(text: &dyn Display) {
    if FILE.get().is_some() {
        tracing::warn!(%text, "notice");
    }
    say(format_args!("cpr-vmm: {text}"));
}

/// Writes a line to stderr, without waiting for its reader.
pub fn say(text: std::fmt::Arguments<'_>) {
    put(&STDERR, format!("{text}\n").as_bytes());
}

/// Installs a panic hook that writes Rust's usual message to stderr without waiting for a reader.
pub fn hook_panics() {
    std::panic::set_hook(Box::new(|info| {
        let thread = std::thread::current();
        let trace = Backtrace::capture();
        let trace = match trace.status() {
            BacktraceStatus::Captured => format!("\nstack backtrace:\n{trace}"),
            _ => String::new(),
        };
        say(format_args!("\nthread '{}' {info}{trace}", thread.name().unwrap_or("<unnamed>")));
    }));
}

/// Sets the event to write to when lines begin to wait for their reader.
pub fn wake_by(wake: Arc<EventFd>) {
    // A second call in one process (tests) changes nothing.
    let _ = WAKE.set(wake);
}

fn outlets() -> impl Iterator<Item = &'static Outlet> {
    FILE.get().into_iter().chain([&STDERR])
}

/// Returns the descriptors to poll for writing; call [`flush`] when one is ready.
pub fn waiting() -> impl Iterator<Item = BorrowedFd<'static>> {
    outlets().filter_map(Outlet::waiting)
}

/// Writes as many queued lines as possible without blocking.
pub fn flush() {
    outlets().for_each(Outlet::flush);
}

/// Gives a slow reader a moment for the last lines before exit.
pub fn finish() {
    outlets().for_each(|outlet| outlet.drain(LAST_LINES));
}

/// Opens the file for appending. Never blocks on a FIFO, with or without a reader.
fn open(path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).custom_flags(libc::O_NONBLOCK);
    match options.open(path) {
        // A FIFO without a reader, which may still come.
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => options.read(true).open(path),
        result => result,
    }
}

/// Starts logging; the file, if there is one, is `preserved` or opened for appending.
pub fn start(
    level: LogLevel,
    path: Option<&PathBuf>,
    preserved: Option<OwnedFd>,
) -> Result<Option<Arc<File>>, LogError> {
    let file = match (path, preserved) {
        (None, _) => None,
        (Some(_), Some(fd)) => Some(File::from(fd)),
        (Some(path), None) => {
            Some(open(path).map_err(|source| LogError { path: path.clone(), source })?)
        }
    };
    let file = file.map(Arc::new);
    let outlet = match &file {
        Some(file) => FILE.get_or_init(|| Outlet::new(Sink::File(file.clone()))),
        None => &STDERR,
    };
    outlet.reserve();
    let level = match level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(false)
        .with_writer(move || Lines(outlet))
        // They would go to stderr by `eprintln!`, which panics if stderr is as full as the log.
        .log_internal_errors(false);
    // A second start in one process (tests) keeps the first.
    let _ = tracing::subscriber::set_global_default(subscriber.finish());
    if let (Some(path), Some(file)) = (path, &file)
        && !names(path, file)
    {
        let path = path.display();
        tracing::warn!(%path, "--log-file names another file than the one that was handed over");
    }
    Ok(file)
}
