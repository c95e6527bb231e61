//! Serves QMP for a VMM that is controlled in another way, through [`Control`].
//!
//! Reports of the VMM become events. What QMP has and the VMM does not report, such as the status of an
//! update, is derived from its reports and replies. So scenarios and checks are the same for every VMM.

mod clients;
mod machine;

use std::fs::Permissions;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::backend::control::{Control, ControlError, Happened};
use crate::backend::{Backend, Channels, Launch};
use clients::Clients;
use machine::Machine;

/// The largest number of bytes read from a client at once.
const PART: usize = 64 << 10;

/// How long the last reports of a process that has ended may take.
const DRAINED: Duration = Duration::from_secs(2);

/// How long the VMM is silent when it has reported what came before a result.
const SILENCE: Duration = Duration::from_millis(20);

/// What the gateway's threads tell its main loop.
pub(crate) enum Input {
    /// The VMM takes requests, or will not; a query tells why.
    Ready,
    /// A client has connected.
    Connected(UnixStream),
    /// A client has sent these bytes.
    Bytes(u64, Vec<u8>),
    /// A client has disconnected.
    Disconnected(u64),
    /// The VMM reports something.
    Happened(Happened),
    /// An update to another process has ended.
    Sent(Result<(), ControlError>),
    /// A VM has arrived, or will not.
    Received(Result<(), ControlError>),
    /// The VMM's process has ended.
    Ended,
    /// The gateway is being dropped.
    Close,
}

/// A QMP server for one process; it ends when this is dropped.
pub struct Gateway {
    input: Sender<Input>,
    listener: Arc<UnixListener>,
    /// Its other end is closed with this.
    _closed: OwnedFd,
    /// Ends the thread that waits for reports.
    over: Arc<AtomicBool>,
    main: Option<thread::JoinHandle<()>>,
}

impl Gateway {
    /// Listens on `socket` for the process `pid`, which `control` controls. If it takes over a VM from
    /// another process, it does so through `incoming`.
    pub fn serve(
        control: Arc<dyn Control>,
        title: &str,
        socket: &Path,
        pid: i32,
        incoming: Option<Channels>,
    ) -> std::io::Result<Self> {
        let (input, inputs) = mpsc::channel();
        let listener = Arc::new(UnixListener::bind(socket)?);
        std::fs::set_permissions(socket, Permissions::from_mode(0o600))?;
        let (watched, closed) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let process = Pid::from_raw(pid).ok_or_else(|| std::io::Error::other("no such PID"))?;
        let process = pidfd_open(process, PidfdFlags::empty())?;
        let accepting = (listener.clone(), input.clone());
        spawn("qmp-accept", move || accept(&accepting.0, &accepting.1))?;
        let (results, after_reports) = mpsc::channel();
        let ended = results.clone();
        spawn("qmp-process", move || {
            await_end(&process, &watched);
            let _ = ended.send(Input::Ended);
        })?;
        let over = Arc::new(AtomicBool::new(false));
        let (reporter, reports, is_over) = (control.clone(), input.clone(), over.clone());
        spawn("qmp-reports", move || {
            pass_on(&*reporter, &reports, &after_reports, &is_over);
        })?;
        let (starting, started, waits) = (control.clone(), input.clone(), incoming.clone());
        let arrived = results.clone();
        spawn("qmp-start", move || {
            let ready = starting.ready();
            let _ = started.send(Input::Ready);
            if let Some(channels) = waits {
                let received = ready.and_then(|()| starting.receive(&channels));
                let _ = arrived.send(Input::Received(received));
            }
        })?;
        let machine = Machine::new(control, title.to_owned(), incoming.is_some(), results);
        let (socket, readers) = (socket.to_owned(), input.clone());
        let main = thread::Builder::new()
            .name("qmp-gateway".into())
            .spawn(move || run(machine, &inputs, readers, &socket))?;
        Ok(Self { input, listener, _closed: closed, over, main: Some(main) })
    }
}

/// A gateway for a process that is about to be started.
pub struct Prepared {
    control: Arc<dyn Control>,
    title: String,
    socket: PathBuf,
    incoming: Option<Channels>,
}

impl Gateway {
    /// Prepares a gateway for the process that is started next, unless it serves QMP itself.
    pub fn prepare(
        backend: &dyn Backend,
        launch: Launch<'_>,
        incoming: Option<&Channels>,
    ) -> std::io::Result<Option<Prepared>> {
        let control = backend.control(launch, incoming)?;
        Ok(control.map(|control| Prepared {
            control,
            title: backend.title(),
            socket: PathBuf::from(&launch.files.qmp),
            incoming: incoming.cloned(),
        }))
    }
}

impl Prepared {
    /// Serves QMP for process `pid`.
    pub fn serve(self, pid: i32) -> std::io::Result<Gateway> {
        let Self { control, title, socket, incoming } = self;
        Gateway::serve(control, &title, &socket, pid, incoming)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = self.input.send(Input::Close);
        // Ends the thread that accepts.
        let _ = nix::sys::socket::shutdown(
            std::os::fd::AsRawFd::as_raw_fd(&*self.listener),
            nix::sys::socket::Shutdown::Both,
        );
        if let Some(main) = self.main.take() {
            let _ = main.join();
        }
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    thread::Builder::new().name(name.into()).spawn(body).map(drop)
}

fn accept(listener: &UnixListener, input: &Sender<Input>) {
    while let Ok((stream, _)) = listener.accept() {
        if input.send(Input::Connected(stream)).is_err() {
            break;
        }
    }
}

/// Waits until the process has ended, or the gateway is closed.
fn await_end(process: &OwnedFd, closed: &OwnedFd) {
    let mut ends = [process.as_fd(), closed.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    while poll(&mut ends, PollTimeout::NONE) == Err(nix::errno::Errno::EINTR) {}
}

/// Passes the VMM's reports on, and each result of `results` after what was reported before it.
fn pass_on(
    control: &dyn Control,
    input: &Sender<Input>,
    results: &Receiver<Input>,
    over: &AtomicBool,
) {
    let mut reports = true;
    while !over.load(Ordering::Relaxed) {
        let result = match reports {
            true => results.try_recv().ok(),
            false => results.recv_timeout(SILENCE).ok(),
        };
        // A process that has ended has reported all once it is disconnected.
        let has_ended = matches!(result, Some(Input::Ended));
        let drained = Instant::now() + if has_ended { DRAINED } else { Duration::ZERO };
        while reports {
            match control.next(SILENCE) {
                Ok(happened) => drop(input.send(Input::Happened(happened))),
                Err(RecvTimeoutError::Disconnected) => reports = false,
                Err(RecvTimeoutError::Timeout) if Instant::now() < drained => {}
                Err(RecvTimeoutError::Timeout) => break,
            }
        }
        if let Some(result) = result
            && input.send(result).is_err()
        {
            break;
        }
    }
}

/// Reads from a client until it disconnects.
fn read(mut stream: UnixStream, client: u64, input: &Sender<Input>) {
    let mut part = vec![0; PART];
    loop {
        let told = match stream.read(&mut part) {
            Ok(0) | Err(_) => Input::Disconnected(client),
            Ok(bytes) => Input::Bytes(client, part[..bytes].to_vec()),
        };
        let last = matches!(told, Input::Disconnected(_));
        if input.send(told).is_err() || last {
            break;
        }
    }
}

/// Greets a client, and starts to read from it.
fn greet(clients: &mut Clients, stream: UnixStream, machine: &Machine, input: &Sender<Input>) {
    let Ok(reader) = stream.try_clone() else { return };
    let client = clients.add(stream, &machine.greeting());
    let input = input.clone();
    if spawn("qmp-client", move || read(reader, client, &input)).is_err() {
        clients.remove(client);
    }
}

/// Serves until the VMM and its VM have ended.
fn run(mut machine: Machine, inputs: &Receiver<Input>, readers: Sender<Input>, socket: &PathBuf) {
    let mut clients = Clients::default();
    // Clients are greeted by a VMM that is up.
    let (mut ready, mut early) = (false, Vec::new());
    while let Ok(input) = inputs.recv() {
        match input {
            Input::Connected(stream) if !ready => early.push(stream),
            Input::Connected(stream) => greet(&mut clients, stream, &machine, &readers),
            Input::Ready => {
                ready = true;
                for stream in early.drain(..) {
                    greet(&mut clients, stream, &machine, &readers);
                }
            }
            Input::Bytes(client, bytes) => clients.feed(client, &bytes, |request| {
                let reply = machine.execute(request);
                (machine.take_events(), reply)
            }),
            Input::Disconnected(client) => clients.remove(client),
            Input::Happened(happened) => machine.happened(happened),
            Input::Sent(result) => machine.sent(result),
            Input::Received(result) => machine.received(result),
            Input::Ended => machine.ended(),
            Input::Close => break,
        }
        clients.broadcast(&machine.take_events());
        if machine.is_over() {
            break;
        }
    }
    // Before the connections close, as a VMM does it.
    let _ = std::fs::remove_file(socket);
    clients.close();
}

#[cfg(test)]
mod tests;
