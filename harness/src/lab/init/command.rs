//! Runs the command in a lab, with its streams connected to the ports.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::InitError;
use super::ports::Ports;
use crate::lab::messages::{self, Report, Request};
use crate::lab::settings::{self, Terminals};
use crate::observe::poll::{self, Deadline};

/// How long killed processes may take to exit.
const GONE: Duration = Duration::from_secs(30);

/// The size of a terminal whose size is not known.
const SIZE: (u16, u16) = (24, 80);

nix::ioctl_write_ptr_bad!(set_size, libc::TIOCSWINSZ, Winsize);

/// Runs `command` and returns the report on its end, after all its output and all its processes.
pub(super) fn run(command: &settings::Command, ports: Ports) -> Result<Report, InitError> {
    let step = |what: &str| InitError::step::<io::Error>(format!("{what} for the command"));
    let terminal = terminal(command.terminals).map_err(step("create a terminal"))?;
    let mut started = Command::new(&command.file);
    let (name, arguments) = command
        .arguments
        .split_first()
        .ok_or_else(|| InitError::new("run the command", "it has no name"))?;
    started
        .arg0(name)
        .args(arguments)
        .env_clear()
        .envs(command.environment.iter().map(|(name, value)| (name, value)))
        .current_dir(&command.folder);
    let Terminals { stdin, stdout, stderr, .. } = command.terminals;
    let slave = |is: bool| match (is, &terminal) {
        (true, Some(terminal)) => Ok(Stdio::from(terminal.slave.try_clone()?)),
        _ => Ok(Stdio::piped()),
    };
    started.stdin(slave(stdin).map_err(step("open the terminal"))?);
    started.stdout(slave(stdout).map_err(step("open the terminal"))?);
    started.stderr(slave(stderr).map_err(step("open the terminal"))?);
    let has_terminal = stdin.then_some(0).or(stdout.then_some(1)).or(stderr.then_some(2));
    let begin = move || {
        nix::unistd::setsid()?;
        if let Some(stream) = has_terminal {
            // SAFETY: a system call on numbers; the stream is the terminal's slave.
            Errno::result(unsafe { libc::ioctl(stream, libc::TIOCSCTTY, 0) })?;
        }
        Ok(())
    };
    // SAFETY: both are async-signal-safe and the closure does nothing else.
    unsafe { started.pre_exec(begin) };
    let mut child = started.spawn().map_err(|e| {
        InitError::new(
            format!("execute {} in {}", command.file.display(), command.folder.display()),
            e,
        )
    })?;
    let pid = Pid::from_raw(child.id() as i32);
    // The slaves in it would keep the terminal open.
    drop(started);
    let master = terminal.map(|terminal| Arc::new(terminal.master));
    let threads =
        connect(&mut child, &master, command.terminals, &ports).map_err(step("start a thread"))?;
    let control = ports.control.try_clone().map_err(step("copy the control port"))?;
    start(move || serve(control, pid, master)).map_err(step("start a thread"))?;
    messages::send(&ports.control, &Report::Started).map_err(step("report the start"))?;

    let status = wait_for(pid)?;
    end_all();
    let mut written = [0; 2];
    for (stream, thread) in threads {
        written[stream] += thread.join().unwrap_or_default();
    }
    Ok(Report::Ended { status, written })
}

struct Terminal {
    master: File,
    slave: OwnedFd,
}

fn terminal(wanted: Terminals) -> io::Result<Option<Terminal>> {
    if !wanted.any() {
        return Ok(None);
    }
    let pty = openpty(Some(&winsize(wanted.size.unwrap_or(SIZE))), None)?;
    for end in [&pty.master, &pty.slave] {
        fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    }
    if !wanted.cooked {
        // The terminal outside echoes and edits lines already.
        let mut raw = tcgetattr(&pty.slave)?;
        cfmakeraw(&mut raw);
        tcsetattr(&pty.slave, SetArg::TCSANOW, &raw)?;
    }
    Ok(Some(Terminal { master: File::from(pty.master), slave: pty.slave }))
}

fn winsize((rows, columns): (u16, u16)) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

/// A thread that passes on output, and the stream that it belongs to.
type Pump = (usize, JoinHandle<u64>);

/// Connects the child's streams to the ports; returns the threads of its output.
fn connect(
    child: &mut std::process::Child,
    master: &Option<Arc<File>>,
    terminals: Terminals,
    ports: &Ports,
) -> io::Result<Vec<Pump>> {
    let mut threads = Vec::new();
    if let Some(pipe) = child.stdout.take() {
        let port = ports.stdout.try_clone()?;
        threads.push((0, pump(File::from(OwnedFd::from(pipe)), port)?));
    }
    if let Some(pipe) = child.stderr.take() {
        let port = ports.stderr.try_clone()?;
        threads.push((1, pump(File::from(OwnedFd::from(pipe)), port)?));
    }
    if let Some(master) = master {
        let stream = if terminals.stdout { 0 } else { 1 };
        let port = if terminals.stdout { &ports.stdout } else { &ports.stderr };
        threads.push((stream, pump(master.try_clone()?, port.try_clone()?)?));
    }
    let input = ports.stdin.try_clone()?;
    match (child.stdin.take(), master) {
        (Some(pipe), _) => drop(pump(input, File::from(OwnedFd::from(pipe)))?),
        (None, Some(master)) => drop(pump(input, master.try_clone()?)?),
        (None, None) => {}
    }
    Ok(threads)
}

fn start(run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().spawn(run).map(drop)
}

/// Copies until the end of the input; returns the number of bytes.
fn pump(mut from: File, mut to: File) -> io::Result<JoinHandle<u64>> {
    std::thread::Builder::new().spawn(move || {
        let mut buffer = vec![0; 32 << 10];
        let mut copied = 0;
        // A terminal without open slaves fails with EIO.
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            if to.write_all(&buffer[..read]).is_err() {
                break;
            }
            copied += read as u64;
        }
        copied
    })
}

/// Does what the harness outside asks for, until the end.
fn serve(control: File, child: Pid, master: Option<Arc<File>>) {
    let mut control = BufReader::new(control);
    while let Ok(Some(request)) = messages::receive(&mut control) {
        match request {
            Request::Signal(number) => {
                if let Ok(signal) = Signal::try_from(number) {
                    // It may have ended by now.
                    let _ = killpg(child, signal);
                }
            }
            Request::Size(rows, columns) => {
                if let Some(master) = &master {
                    // SAFETY: the kernel reads the structure, which lives until the call returns.
                    let _ = unsafe { set_size(master.as_raw_fd(), &winsize((rows, columns))) };
                }
            }
        }
    }
}

/// Reaps children until the command has ended; returns its exit status, or 128 and its signal.
fn wait_for(command: Pid) -> Result<u8, InitError> {
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, status)) if pid == command => return Ok(status as u8),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == command => {
                return Ok(128 + signal as u8);
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(InitError::new("wait for the command", e)),
        }
    }
}

/// Kills and reaps all other processes, which hold the command's output open.
fn end_all() {
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    let gone = || (waitpid(None, Some(WaitPidFlag::WNOHANG)) == Err(Errno::ECHILD)).then_some(());
    // One that the kernel does not let go of ends with the lab.
    poll::until(Deadline::after(GONE), gone);
}
