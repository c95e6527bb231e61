//! The rehearsal: before the guest stops, the command runs once in a child that only answers who it
//! is, what it can load and which machine its arguments describe.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, fcntl};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Pid, pipe2};

use super::command::{ExecCommand, ExecError};
use super::description::Description;

/// The environment variable with the number of the socket to answer on.
pub const ENV_NAME: &str = "CPR_REHEARSAL";
/// The socket's number in the child.
const CHILD_SOCKET: RawFd = 3;
/// Most bytes of an answer.
const MAX_ANSWER: usize = 64 << 10;
/// Bytes of stderr that are kept, from its beginning and from its end.
const STDERR_KEPT: usize = 2048;
/// Characters that an error quotes of either.
const QUOTED: usize = 150;
/// Deepest nesting of CBOR that is followed.
const MAX_DEPTH: usize = 16;
/// How long the children of a command that escapes into the background are hunted for.
const HUNT: Duration = Duration::from_secs(1);

/// Why a command is not executed.
#[derive(Debug, thiserror::Error)]
pub enum RehearsalError {
    /// A fail point.
    #[cfg(feature = "failpoints")]
    #[error(transparent)]
    Injected(#[from] crate::failpoints::Injected),
    /// It cannot be executed at all.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// The rehearsal itself could not be set up.
    #[error("cannot rehearse cpr-exec-command \"{command}\": {call}: {source}")]
    Setup {
        /// The command.
        command: String,
        /// The system call.
        call: &'static str,
        /// Why.
        source: io::Error,
    },
    /// It ended.
    #[error(
        "cpr-exec-command \"{command}\" is no VMM that can go on with this guest: {how} without answering the rehearsal{stderr}"
    )]
    Ended {
        /// The command.
        command: String,
        /// How.
        how: String,
        /// What it said.
        stderr: String,
    },
    /// It did not answer.
    #[error("cpr-exec-command \"{command}\" did not answer the rehearsal within {} ms{stderr}", .waited.as_millis())]
    Deadline {
        /// The command.
        command: String,
        /// How long it had.
        waited: Duration,
        /// What it said.
        stderr: String,
    },
    /// It answered something else.
    #[error(
        "cpr-exec-command \"{command}\" answered the rehearsal with something else than a VMM does: {why}{stderr}"
    )]
    Garbage {
        /// The command.
        command: String,
        /// What is wrong with it.
        why: String,
        /// What it said.
        stderr: String,
    },
    /// It is a VMM, and does not fit.
    #[error("cpr-exec-command {0}")]
    Differs(String),
    /// It was called off.
    #[error("the update was cancelled")]
    Cancelled,
}

/// A rehearsal that is going on. Dropping it ends it, and everything it has started.
#[derive(Debug)]
pub struct Rehearsal {
    command: String,
    child: Child,
    socket: UnixStream,
    answer: Vec<u8>,
    stderr: io::PipeReader,
    said: Said,
    stderr_open: bool,
    socket_open: bool,
    began: Instant,
    timeout: Duration,
}

impl Rehearsal {
    /// Runs `command` in a process group of its own, without any descriptor of the VM.
    pub fn start(command: &ExecCommand, timeout: Duration) -> Result<Self, RehearsalError> {
        let setup = |call| {
            let command = command.name().to_owned();
            move |source: io::Error| RehearsalError::Setup { command, call, source }
        };
        fail_point!(Rehearsal);
        let (socket, theirs) = UnixStream::pair().map_err(setup("socketpair"))?;
        socket.set_nonblocking(true).map_err(setup("fcntl"))?;
        let (stderr, their_stderr) =
            pipe2(OFlag::O_CLOEXEC).map_err(|errno| setup("pipe2")(errno.into()))?;
        set_nonblocking(&stderr).map_err(|errno| setup("fcntl")(errno.into()))?;
        let before = children();
        // What leaves its parent behind becomes our child, and cannot hide.
        let reaper = Subreaper::become_one().map_err(|errno| setup("prctl")(errno.into()))?;
        let null = File::options().read(true).write(true).open("/dev/null");
        let null = null.map_err(setup("open /dev/null"))?;
        let streams = [null.as_fd(), null.as_fd(), their_stderr.as_fd()];
        let pid = command.spawn(ENV_NAME, theirs.as_fd(), CHILD_SOCKET, streams)?;
        offer_to_oom_killer(pid);
        let child =
            Child::new(pid, before, reaper).map_err(|errno| setup("pidfd_open")(errno.into()))?;
        Ok(Self {
            command: command.name().to_owned(),
            child,
            socket,
            answer: Vec::new(),
            stderr: stderr.into(),
            said: Said::default(),
            stderr_open: true,
            socket_open: true,
            began: Instant::now(),
            timeout,
        })
    }

    /// What to wait for.
    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        let mut fds = vec![self.child.ended.as_fd()];
        fds.extend(self.socket_open.then(|| self.socket.as_fd()));
        fds.extend(self.stderr_open.then(|| self.stderr.as_fd()));
        fds
    }

    /// How long it has gone on.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// How long to wait at most.
    pub fn time_left(&self) -> Duration {
        self.timeout.saturating_sub(self.began.elapsed())
    }

    /// Looks at what has come; `Some` when it is over.
    pub fn progress(&mut self) -> Option<Result<Description, RehearsalError>> {
        // Before the pipes are drained: what an ended child has written is then complete.
        let ended = self.child.status();
        self.drain_stderr();
        self.drain_socket();
        if let Some(answer) = self.whole_answer() {
            return Some(answer);
        }
        if let Some(how) = ended {
            let (command, stderr) = (self.command.clone(), self.quoted_stderr());
            return Some(Err(RehearsalError::Ended { command, how, stderr }));
        }
        if self.time_left().is_zero() {
            let (command, stderr) = (self.command.clone(), self.quoted_stderr());
            return Some(Err(RehearsalError::Deadline { command, waited: self.timeout, stderr }));
        }
        None
    }

    fn drain_stderr(&mut self) {
        let mut buffer = [0; 4096];
        // A flood is not read for ever: what is left is read after the next poll.
        for _ in 0..16 {
            match self.stderr.read(&mut buffer) {
                Ok(0) => self.stderr_open = false,
                Ok(length) => {
                    self.said.add(&buffer[..length]);
                    continue;
                }
                Err(_) => {}
            }
            return;
        }
    }

    fn drain_socket(&mut self) {
        let mut buffer = [0; 4096];
        while self.answer.len() <= MAX_ANSWER {
            match self.socket.read(&mut buffer) {
                Ok(0) => self.socket_open = false,
                Ok(length) => {
                    self.answer.extend_from_slice(&buffer[..length]);
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => self.socket_open = false,
            }
            return;
        }
    }

    fn whole_answer(&self) -> Option<Result<Description, RehearsalError>> {
        let garbage = |why: String| {
            let (command, stderr) = (self.command.clone(), self.quoted_stderr());
            Some(Err(RehearsalError::Garbage { command, why, stderr }))
        };
        let (length, body) = self.answer.split_first_chunk::<4>()?;
        let length = u32::from_le_bytes(*length) as usize;
        if length > MAX_ANSWER || self.answer.len() > MAX_ANSWER {
            return garbage(format!("more than {MAX_ANSWER} bytes"));
        }
        let body = body.get(..length)?;
        match ciborium::de::from_reader_with_recursion_limit(body, MAX_DEPTH) {
            Ok(description) => Some(Ok(description)),
            Err(_) => garbage(format!("{length} bytes that are no description of a machine")),
        }
    }

    fn quoted_stderr(&self) -> String {
        match self.said.quote() {
            quote if quote.is_empty() => quote,
            quote => format!("; it said: {quote}"),
        }
    }
}

/// What a command has written to stderr: programs name their trouble first or last.
#[derive(Debug, Default)]
struct Said {
    head: Vec<u8>,
    tail: Vec<u8>,
    /// Bytes between the two.
    lost: bool,
}

impl Said {
    fn add(&mut self, bytes: &[u8]) {
        let room = STDERR_KEPT - self.head.len();
        let (head, tail) = bytes.split_at(bytes.len().min(room));
        self.head.extend_from_slice(head);
        self.tail.extend_from_slice(tail);
        let excess = self.tail.len().saturating_sub(STDERR_KEPT);
        self.lost |= excess > 0;
        self.tail.drain(..excess);
    }

    fn quote(&self) -> String {
        let line = |bytes: &[u8]| -> Vec<char> {
            let text = String::from_utf8_lossy(bytes);
            let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
            words.chars().filter(|c| !c.is_control()).collect()
        };
        let whole = line(&[self.head.as_slice(), &self.tail].concat());
        if whole.len() <= 2 * QUOTED && !self.lost {
            return whole.into_iter().collect();
        }
        let (head, tail) = (&whole[..QUOTED.min(whole.len())], whole.len().saturating_sub(QUOTED));
        format!("{} … {}", String::from_iter(head), String::from_iter(&whole[tail..]))
    }
}

/// The child's side: answers and ends. `value` is that of [`ENV_NAME`].
pub fn answer(value: &str, description: &Description) -> io::Result<()> {
    let invalid = |why: &str| io::Error::new(ErrorKind::InvalidInput, why.to_owned());
    let fd: RawFd = value.parse().map_err(|_| invalid("its value is no number"))?;
    if fd <= 2 {
        return Err(invalid("its value is no descriptor for an answer"));
    }
    // SAFETY: a closed number gives EBADF; the process ends after the answer and owns nothing yet.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let mut socket = UnixStream::from(fd.try_clone_to_owned()?);
    let mut body = Vec::new();
    ciborium::into_writer(description, &mut body)
        .expect("writing to memory cannot fail and no description has a type CBOR lacks");
    socket.write_all(&(body.len() as u32).to_le_bytes())?;
    socket.write_all(&body)
}

/// Where memory runs out, this child should go, and not the VMM with all of the guest's RAM. No
/// promise: in a cgroup that the VMM fills to the last MiB or so the two weigh the same.
///
/// Now that it executes the command it shares no memory with the VMM, so this is its own alone.
fn offer_to_oom_killer(pid: Pid) {
    const FIRST_TO_GO: &str = "1000";
    // It may have ended already; and a system without such a thing has nothing to set.
    let _ = std::fs::write(format!("/proc/{pid}/oom_score_adj"), FIRST_TO_GO);
}

fn set_nonblocking(fd: &impl AsFd) -> Result<(), Errno> {
    fcntl(fd, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map(drop)
}

/// While it lives, orphans of our descendants become our children.
#[derive(Debug)]
struct Subreaper;

impl Subreaper {
    fn become_one() -> Result<Self, Errno> {
        prctl::set_child_subreaper(true).map(|()| Self)
    }
}

impl Drop for Subreaper {
    fn drop(&mut self) {
        let _ = prctl::set_child_subreaper(false);
    }
}

#[derive(Debug)]
struct Child {
    pid: Pid,
    ended: OwnedFd,
    /// Children that were there before, and are none of this business.
    before: BTreeSet<Pid>,
    _reaper: Subreaper,
}

impl Child {
    fn new(pid: Pid, before: BTreeSet<Pid>, reaper: Subreaper) -> Result<Self, Errno> {
        // SAFETY: plain integers. The kernel sets close-on-exec.
        let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) });
        let fd = fd.inspect_err(|_| {
            let _ = kill(pid, Signal::SIGKILL);
            let _ = waitpid(pid, None);
        })?;
        // SAFETY: the system call just returned this descriptor.
        let ended = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        Ok(Self { pid, ended, before, _reaper: reaper })
    }

    /// How it ended, if it has. It stays a zombie, so its number stays its own.
    fn status(&self) -> Option<String> {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        match waitid(Id::Pid(self.pid), flags) {
            Ok(WaitStatus::Exited(_, status)) => Some(format!("it exited with status {status}")),
            Ok(WaitStatus::Signaled(_, signal, _)) => Some(format!("it was killed by {signal}")),
            _ => None,
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = killpg(self.pid, Signal::SIGKILL);
        let _ = kill(self.pid, Signal::SIGKILL);
        while waitpid(self.pid, None) == Err(Errno::EINTR) {}
        // Those that left the group are our children now, or will be when their parents die.
        let until = Instant::now() + HUNT;
        while Instant::now() < until {
            let left: Vec<Pid> = children().difference(&self.before).copied().collect();
            if left.is_empty() {
                return;
            }
            for pid in left {
                let _ = kill(pid, Signal::SIGKILL);
                let _ = waitpid(pid, None);
            }
        }
        tracing::error!("rehearsal_left_processes");
    }
}

/// Ends every child process, and with them a rehearsal that was left half done.
pub fn end_all() {
    drop(Subreaper);
    for pid in children() {
        let _ = kill(pid, Signal::SIGKILL);
        while waitpid(pid, None) == Err(Errno::EINTR) {}
    }
}

/// The children of all threads of this process (`/proc/PID/task/TID/children`).
fn children() -> BTreeSet<Pid> {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return BTreeSet::new() };
    let lists = tasks
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    let numbers = |list: String| -> Vec<Pid> {
        list.split_whitespace().filter_map(|n| n.parse().ok()).map(Pid::from_raw).collect()
    };
    lists.flat_map(numbers).collect()
}

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use rstest::rstest;

    use super::*;

    fn rehearse(script: &str, timeout: Duration) -> Result<Description, RehearsalError> {
        let words = ["/bin/sh", "-c", script].map(str::to_owned);
        let command = ExecCommand::prepare(Some(&words)).unwrap();
        let mut rehearsal = Rehearsal::start(&command, timeout)?;
        loop {
            if let Some(result) = rehearsal.progress() {
                return result;
            }
            let fds = rehearsal.fds();
            let mut fds: Vec<_> =
                fds.into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
            let left = PollTimeout::try_from(rehearsal.time_left()).unwrap();
            poll(&mut fds, left).unwrap();
        }
    }

    #[rstest]
    #[case("exits_well", "exit 0", 10_000)]
    #[case("exits_badly", "echo no such option >&2; exit 7", 10_000)]
    #[case("kills_itself", "kill -SEGV $$", 10_000)]
    #[case("hangs", "echo still here >&2; exec sleep 1000", 300)]
    #[case("floods_stdout", "exec yes", 300)]
    #[case("daemonizes", "setsid sleep 1000 & exit 0", 10_000)]
    #[case("answers_garbage", "printf 'AAAA' >&3; exec sleep 1000", 10_000)]
    #[case("floods_the_socket", "exec yes >&3", 10_000)]
    #[case("answers_bad_cbor", "printf '\\003\\000\\000\\000\\377\\377\\377' >&3", 10_000)]
    #[serial_test::serial(children)]
    fn what_is_no_vmm_is_refused_and_nothing_is_left(
        #[case] name: &str,
        #[case] script: &str,
        #[case] ms: u64,
    ) {
        let error = rehearse(script, Duration::from_millis(ms)).unwrap_err();
        insta::assert_snapshot!(format!("rehearsal_{name}"), error);
        let left: Vec<_> = children().into_iter().filter(is_ours).collect();
        assert!(left.is_empty(), "{left:?}");
    }

    /// Other tests of this binary have children too; those of a rehearsal are shells and sleepers.
    fn is_ours(pid: &Pid) -> bool {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        ["sh", "sleep", "yes"].contains(&name.trim())
    }

    #[test]
    #[serial_test::serial(children)]
    fn a_flood_on_stderr_is_cut() {
        let error = rehearse("exec yes 1>&2", Duration::from_millis(300)).unwrap_err().to_string();
        assert!(error.contains("did not answer") && error.len() < 600, "{error}");
    }

    #[test]
    #[serial_test::serial(children)]
    fn the_child_is_offered_to_the_oom_killer() {
        let script = "until [ $(cat /proc/$$/oom_score_adj) = 1000 ]; do :; done; exit 7";
        let error = rehearse(script, Duration::from_secs(10)).unwrap_err().to_string();
        assert!(error.contains("status 7"), "{error}");
        let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
        assert_ne!(own.trim(), "1000");
    }

    #[test]
    fn beginning_and_end_are_quoted() {
        let mut said = Said::default();
        assert_eq!(said.quote(), "");
        said.add(b"error: no\n such option\n");
        assert_eq!(said.quote(), "error: no such option");
        said.add(&[b'.'; 10_000]);
        said.add(b" last words");
        let quote = said.quote();
        assert!(quote.starts_with("error: no such option ...."), "{quote}");
        assert!(quote.contains("... … ...") && quote.ends_with("... last words"), "{quote}");
    }

    #[test]
    #[serial_test::serial(children)]
    fn a_missing_command_is_told_apart() {
        let command = ExecCommand::prepare(Some(&["/nowhere/vmm".to_owned()])).unwrap();
        let error = Rehearsal::start(&command, Duration::from_secs(1)).unwrap_err();
        insta::assert_snapshot!(error, @r#"cannot execute cpr-exec-command "/nowhere/vmm": No such file or directory (os error 2)"#);
    }
}
