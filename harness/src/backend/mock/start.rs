//! The mock's start: a boot, or the last part of an update in the new program.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use cpr_qmp::migration::{MigMode, MigrationStatus};
use cpr_qmp::run_state::RunState;
use guest_images::mailbox::damage_kind;
use kvm_ioctls::{Kvm, VmFd};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::socket::{setsockopt, sockopt};
use rustix::process::{Pid, setpriority_process};

use super::checkpoint::Checkpoint;
use super::failpoint::Armed;
use super::fault::TOO_LONG;
use super::guest::Guest;
use super::handover::{self, Handover, Peer};
use super::keeper::Keeper;
use super::machine::{Client, Machine, greeting};
use super::ram::{self, ram_file};
use super::transfer;
use super::waiting::Waiting;
use super::{Args, Fault, process_faults};

/// Longer than one check takes, but shorter than the harness waits.
const LINGERS: Duration = Duration::from_millis(300);

/// Bytes of growth for each update; more than the memory check allows.
const GROWTH: usize = 64 << 10;

impl Machine {
    /// Boots, or takes over from the previous program.
    pub fn start(args: Args) -> io::Result<Self> {
        if let Some((handover, state)) = handover::adopt(args.has(Fault::KeepVariable))? {
            return Self::resume(args, handover, state);
        }
        match transfer::receive_ram(&args)? {
            None => Self::boot(args),
            Some((ram, old, main)) => {
                let machine = Self::wait(args, ram, main)?;
                transfer::built(old)?;
                Ok(machine)
            }
        }
    }

    /// Builds a VM that another process continues to run until it sends its state on `main`.
    fn wait(args: Args, ram: OwnedFd, main: UnixListener) -> io::Result<Self> {
        let mut machine = Self::build(args, ram)?;
        machine.run_state = RunState::Inmigrate;
        machine.waiting = Some(Waiting::New(main));
        Ok(machine)
    }

    fn boot(args: Args) -> io::Result<Self> {
        let ram = ram_file(args.memory_bytes()?)?;
        let mut machine = Self::build(args, ram)?;
        machine.guest.busy = machine.args.has(Fault::PauseToRefuse);
        machine.guest.start(machine.args.cpus, false)?;
        if machine.args.has(Fault::LackAtBoot) {
            machine.guest.lack("a second sun");
        }
        if !machine.args.paused {
            machine.guest.boot(machine.args.cpus);
            machine.guest.set_running(true);
            machine.run_state = RunState::Running;
        }
        machine.keep_always()?;
        Ok(machine)
    }

    /// Creates everything but the vCPUs.
    fn build(args: Args, ram: OwnedFd) -> io::Result<Self> {
        let log = File::options().append(true).create(true).open(&args.log_file)?;
        let guest = Guest::new(ram, args.shared_ram(), args.has(Fault::DumpRam))?;
        before_listening(&args)?;
        let listener = UnixListener::bind(args.socket())?;
        fs::set_permissions(args.socket(), fs::Permissions::from_mode(0o600))?;
        write_pid_file(&args)?;
        if args.has(Fault::OpenPidFile) {
            fs::set_permissions(&args.pid_file, fs::Permissions::from_mode(0o666))?;
        }
        if args.has(Fault::InheritableListener) {
            handover::set_close_on_exec(listener.as_raw_fd(), false);
        }
        let kvm = args.has(Fault::SecondVm).then(create_vm).flatten();
        Ok(Self {
            guest,
            _epoll: waiting_for(&listener)?,
            listener,
            clients: Vec::new(),
            serial: args.serial_socket().map(UnixListener::bind).transpose()?,
            serial_clients: Vec::new(),
            serial_line: 0,
            updates: 0,
            _ballast: Vec::new(),
            log,
            _kvm: kvm.into_iter().collect(),
            run_state: RunState::Prelaunch,
            mode: MigMode::Normal,
            command: Vec::new(),
            command_was_set: false,
            events: false,
            status: MigrationStatus::None,
            error: None,
            under_way: None,
            asked: None,
            keeper: None,
            armed: Armed::new(&args.failpoint),
            ends: false,
            revived: false,
            checkpoint: Checkpoint::new()?,
            waiting: None,
            held: None,
            args,
        })
    }

    fn resume(args: Args, handover: Handover, state: OwnedFd) -> io::Result<Self> {
        let mut ram = owned(handover.ram);
        if args.has(Fault::CopyRam) {
            ram::copy_ram(&mut ram)?;
        }
        if args.has(Fault::MoveFrames) {
            ram::move_frames(&ram, 1)?;
        }
        if args.has(Fault::MoveSomeFrames) {
            ram::move_frames(&ram, 4)?;
        }
        let vms = if args.has(Fault::SecondVm) { 2 } else { 0 };
        let kvm = (0..vms).filter_map(|_| create_vm()).collect();
        let shared = args.shared_ram();
        let grown = if args.has(Fault::Grow) { handover.updates * GROWTH } else { 0 };
        // Not zeros, which take up no memory before they are written.
        let ballast = vec![1; grown];
        let client = |peer: Peer| Client { stream: owned(peer.number).into(), input: peer.input };
        let listener = UnixListener::from(owned(handover.listener));
        let clients: Vec<Client> = handover.clients.into_iter().map(client).collect();
        let awaited = match clients.first().filter(|_| args.has(Fault::WaitForAnother)) {
            Some(client) => client.stream.as_fd(),
            None => listener.as_fd(),
        };
        let mut machine = Self {
            guest: Guest::new(ram, shared, args.has(Fault::DumpRam))?,
            _epoll: waiting_for(awaited)?,
            listener,
            clients,
            serial: handover.serial.map(|number| owned(number).into()),
            serial_clients: Vec::new(),
            serial_line: 0,
            updates: handover.updates,
            _ballast: ballast,
            log: owned(handover.log).into(),
            _kvm: kvm,
            run_state: handover.run_state,
            mode: MigMode::Normal,
            command: Vec::new(),
            command_was_set: false,
            events: handover.events,
            status: handover.status,
            error: handover.error,
            under_way: handover.under_way,
            asked: handover.asked,
            keeper: handover.keeper.map(Keeper::inherited),
            armed: Armed::new(&args.failpoint),
            ends: false,
            revived: false,
            checkpoint: Checkpoint::adopt(owned(handover.checkpoint))?,
            waiting: None,
            held: None,
            args,
        };
        match handover.revived {
            None => machine.arrive(state)?,
            Some(revived) => machine.continue_here(revived)?,
        }
        Ok(machine)
    }

    /// Runs the last part of an update, in the new program.
    fn arrive(&mut self, state: OwnedFd) -> io::Result<()> {
        self.reach("vcpus");
        let Some(fault) = self.args.fault else { return self.finish_update() };
        match fault {
            Fault::Dawdle => std::thread::sleep(TOO_LONG),
            Fault::LeakFd => std::mem::forget(File::open("/dev/null")?),
            Fault::LingerFd => {
                let file = File::open("/dev/null")?;
                std::thread::spawn(move || {
                    std::thread::sleep(LINGERS);
                    drop(file);
                });
            }
            Fault::KeepStateFd => std::mem::forget(state),
            Fault::KeepChild => {
                std::process::Command::new("sleep").arg("600").spawn()?;
            }
            Fault::SecondGreeting => {
                let greeting = greeting().to_string();
                self.clients.iter_mut().try_for_each(|client| client.send(&greeting))?;
            }
            Fault::KeepMode => self.mode = MigMode::CprExec,
            Fault::LeakLock => self.log.lock()?,
            Fault::ChangeSocketOption => setsockopt(&self.listener, sockopt::RcvBuf, &8192)?,
            Fault::ChangeLogMode => {
                fs::set_permissions(&self.args.log_file, fs::Permissions::from_mode(0o640))?;
            }
            Fault::StrayFile => fs::write(self.args.pid_file.with_file_name("stray"), "")?,
            Fault::RewritePidFile => {
                fs::remove_file(&self.args.pid_file)?;
                write_pid_file(&self.args)?;
            }
            Fault::RemakeSerialSocket => {
                if let Some(path) = self.args.serial_socket() {
                    fs::remove_file(path)?;
                    UnixListener::bind(path)?;
                }
            }
            Fault::GuestException => self.guest.damage(damage_kind::EXCEPTION),
            Fault::Reboot => self.guest.boot(self.args.cpus),
            Fault::GuestPanic => self.guest.damage(damage_kind::PANIC),
            Fault::TripleFault => writeln!(self.log, "ERROR guest_triple_fault vcpu=0")?,
            Fault::ResumePaused if self.run_state != RunState::Running => {
                self.run_state = RunState::Running;
            }
            _ => process_faults::change(fault)?,
        }
        self.finish_update()
    }

    fn finish_update(&mut self) -> io::Result<()> {
        let run = self.run_state == RunState::Running;
        self.guest.start(self.args.cpus, self.args.has(Fault::BeatWhilePaused))?;
        let vcpu = self.guest.threads[0];
        if self.args.has(Fault::ReniceVcpu) {
            setpriority_process(Pid::from_raw(vcpu), 7)?;
        }
        if self.args.has(Fault::RenameVcpu) {
            fs::write(format!("/proc/self/task/{vcpu}/comm"), "another")?;
        }
        if run {
            self.guest.set_running(!self.args.has(Fault::Freeze));
            self.emit("RESUME", None);
            if let Some(update) = &mut self.under_way {
                update.stopped = false;
            }
            self.checkpoint()?;
        }
        self.error = None;
        self.set_status(MigrationStatus::Completed);
        self.update_is_over()
    }
}

/// Takes over a descriptor that the previous program left open for us.
fn owned(number: i32) -> OwnedFd {
    // SAFETY: the handover names each descriptor once, and nothing else owns it in this process.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    handover::set_close_on_exec(fd.as_raw_fd(), true);
    fd
}

/// An epoll instance that waits for `awaited`.
fn waiting_for(awaited: impl AsFd) -> io::Result<Epoll> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(awaited, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
    Ok(epoll)
}

/// Removes a stale socket, and applies the faults that occur at a start.
fn before_listening(args: &Args) -> io::Result<()> {
    if !args.has(Fault::NoSecondStart) && UnixStream::connect(args.socket()).is_err() {
        // It may not exist.
        let _ = fs::remove_file(args.socket());
    }
    match args.fault {
        Some(Fault::Outlived) => {
            // Its parent exits at once, so that it is not a child of this process.
            let script = ["-c", "setsid sleep 600 </dev/null >/dev/null 2>&1 &"];
            std::process::Command::new("sh").args(script).status().map(drop)
        }
        Some(Fault::FileOutside) => {
            let name = format!("mock-vmm-{}", std::process::id());
            fs::write(std::env::temp_dir().join(name), "")
        }
        _ => Ok(()),
    }
}

pub(super) fn write_pid_file(args: &Args) -> io::Result<()> {
    let another = args.has(Fault::KeepOldPid) && args.takes_over();
    let pid = if another { rustix::process::getppid() } else { None };
    let pid = pid.map_or(std::process::id(), |pid| pid.as_raw_nonzero().get() as u32);
    fs::write(&args.pid_file, format!("{pid}\n"))
}

/// Creates a VM; none if KVM is missing.
fn create_vm() -> Option<VmFd> {
    Kvm::new().ok()?.create_vm().ok()
}
