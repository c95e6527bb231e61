//! Starts a VMM only to query its features, and ends it afterwards.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use crate::observe::patience::patient;
use crate::observe::poll::{self, Deadline};
use crate::observe::qmp::{Qmp, QmpFault};
use crate::process::{child, program, signals};

/// The deadline for the QMP greeting.
const GREETING: Duration = Duration::from_secs(10);
/// The deadline for a command to print its output and exit.
const ANSWER: Duration = Duration::from_secs(10);
/// The largest number of bytes of output that is read.
const LONGEST: u64 = 64 << 10;

/// A process that is killed when this is dropped.
pub(super) struct ProbeProcess(Mutex<Child>);

impl ProbeProcess {
    /// Starts it, with its output discarded and its standard error in the file `errors`.
    pub fn start(command: &mut Command, errors: &Path) -> io::Result<Self> {
        Self::spawn(command.stdout(Stdio::null()).stderr(File::create(errors)?))
    }

    /// Starts it. It does not outlive the harness: its group is registered to be killed, and the
    /// kernel ends it if the harness is killed.
    fn spawn(command: &mut Command) -> io::Result<Self> {
        command.stdin(Stdio::null()).process_group(0);
        let parent = nix::unistd::getpid();
        let begin = move || {
            signals::reset()?;
            program::inherit_nothing()?;
            child::die_with(parent)
        };
        // SAFETY: the three are async-signal-safe and the closure does nothing else.
        unsafe { command.pre_exec(begin) };
        program::spawn(command).map(Mutex::new).map(Self)
    }

    /// Connects to it.
    pub fn qmp(&self, socket: &Path) -> Result<Qmp, QmpFault> {
        let ended = || Some(format!("it has ended ({})", self.ended()?));
        Qmp::connect(socket, patient(GREETING), Arc::new(|_, _| {}), ended)
    }

    /// Its PID.
    pub fn pid(&self) -> i32 {
        self.child().id() as i32
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ended(&self) -> Option<ExitStatus> {
        self.child().try_wait().ok().flatten()
    }
}

impl Drop for ProbeProcess {
    fn drop(&mut self) {
        let mut child = self.child();
        let pid = child.id() as i32;
        child::kill_group(pid);
        let _ = child.wait();
        signals::forget(pid);
    }
}

/// Runs a command and returns its output; none if it fails.
pub(super) fn output_of(command: &mut Command) -> io::Result<Option<String>> {
    output_within(command, patient(ANSWER))
}

fn output_within(command: &mut Command, limit: Duration) -> io::Result<Option<String>> {
    let deadline = Deadline::after(limit);
    let process = ProbeProcess::spawn(command.stdout(Stdio::piped()).stderr(Stdio::null()))?;
    let late = |what: &str| {
        io::Error::new(io::ErrorKind::TimedOut, format!("{command:?} {what} within {limit:?}"))
    };
    let stdout =
        process.child().stdout.take().ok_or_else(|| io::Error::other("it has no output"))?;
    let (sender, read) = mpsc::channel();
    thread::Builder::new().name("output".into()).spawn(move || {
        let mut text = Vec::new();
        let read = stdout.take(LONGEST).read_to_end(&mut text);
        // The receiver is gone if the deadline has passed.
        let _ = sender.send(read.map(|_| text));
    })?;
    let text = read.recv_timeout(deadline.remaining());
    let text = text.map_err(|_| late("did not close its output"))??;
    let status = poll::until(deadline, || process.child().try_wait().transpose());
    let status = status.ok_or_else(|| late("did not end"))??;
    Ok(status.success().then(|| String::from_utf8_lossy(&text).into_owned()))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;
    use nix::fcntl::{F_SETFD, FdFlag};
    use rstest::rstest;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[rstest]
    #[case::an_answer("echo text", Some("text\n"))]
    #[case::no_answer("echo text; exit 1", None)]
    #[case::endless("while echo text; do :; done", None)]
    fn only_success_returns_output(#[case] script: &str, #[case] expected: Option<&str>) {
        assert_eq!(output_of(&mut shell(script)).unwrap().as_deref(), expected);
    }

    #[test]
    fn process_inherits_no_descriptors() {
        let left_open = std::fs::File::open("/dev/null").unwrap();
        let fd = left_open.as_raw_fd();
        nix::fcntl::fcntl(&left_open, F_SETFD(FdFlag::empty())).unwrap();
        let script = format!("[ -e /proc/self/fd/{fd} ] && echo open || echo closed");
        assert_eq!(output_of(&mut shell(&script)).unwrap().as_deref(), Some("closed\n"));
    }

    /// A command that hangs, or leaves a child behind, is not waited for.
    #[rstest]
    #[case::hangs("exec sleep 600")]
    #[case::leaves_a_child("sleep 600 &")]
    #[case::closes_its_output("exec >&-; exec sleep 600")]
    fn late_command_is_ended(#[case] script: &str) {
        let error = output_within(&mut shell(script), Duration::from_millis(100)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(error.to_string().ends_with(" within 100ms"), "{error}");
    }

    /// No other code may reap it, because its owner does.
    #[test]
    fn process_is_registered_until_it_ends() {
        let pid = ProbeProcess::start(&mut Command::new("/bin/cat"), Path::new("/dev/null")).map(
            |process| {
                assert!(signals::is_registered(process.pid()));
                process.pid()
            },
        );
        assert!(!signals::is_registered(pid.unwrap()));
    }
}
