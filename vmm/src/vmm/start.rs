//! Assembles a VMM for a new guest or for one that is taken over.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cpr_qmp::migration::{MigrationParameters, MigrationStatus};
use cpr_qmp::run_state::RunState;

use super::incoming::{AwaitedState, FallbackFds, LoadError, Source};
use super::reset_throttle::ResetThrottle;
use super::signals::EndSignals;
use super::start_error::StartError;
use super::{Vmm, receiving};
use crate::boot::BootImage;
use crate::config::{Config, Incoming, KeeperPolicy, TransferChannels};
use crate::devices::serial::SerialHost;
use crate::keeper::commit::{CommitPage, PAGE_FD};
use crate::keeper::{TIMER_FD, Watch};
use crate::logging::{self, LOG_FD};
use crate::machine::{Machine, MachineError};
use crate::memory::{RamBlock, RamError};
use crate::migration::channel;
use crate::migration::cpr::fall_back::traffic;
use crate::migration::cpr::fd_names::{
    BINARY_FD, DUMP_FD, KVM_FD, SAVED_FD, SIGNALS_FDS, TRAFFIC_FD,
};
use crate::migration::cpr::held_signals;
use crate::migration::cpr::monotonic::monotonic_ns;
use crate::migration::cpr::phases::Phases;
use crate::migration::cpr::state::Live;
use crate::migration::cpr::take_over::Adopted;
use crate::migration::normal::NormalLoadError;
use crate::migration::normal::snapshot::Snapshot;
use crate::migration::status::Migration;
use crate::pid_file::PidFile;
use crate::qmp::Server;

impl Vmm {
    /// Starts a guest, or continues the one in `adopted`.
    pub(super) fn start(
        config: Config,
        adopted: Option<Adopted>,
        phases: Phases,
    ) -> Result<Self, StartError> {
        match (adopted, config.incoming()) {
            (None, None) => Self::boot(config, &phases),
            (Some(adopted), _) if adopted.fallback.returned.is_some() => {
                Self::take_over(config, adopted, None, phases)
            }
            (Some(_), Some(Incoming::Transfer(_) | Incoming::Peer(_))) => {
                Err(StartError::TransferAfterExec)
            }
            (Some(adopted), Some(incoming)) => {
                Self::take_over(config, adopted, Some(incoming), phases)
            }
            (None, Some(Incoming::File(state))) if config.incoming_ram.is_some() => {
                Self::rescue(config, &state)
            }
            (None, Some(Incoming::Transfer(channels))) if config.incoming_ram.is_none() => {
                Self::await_transfer(config, channels)
            }
            (None, Some(Incoming::Peer(peer))) if config.incoming_ram.is_none() => {
                Self::load_with_ram(config, |vmm| vmm.listen_for_guest(peer))
            }
            (None, Some(Incoming::File(path))) => match Snapshot::open(&path) {
                Ok(Some(snapshot)) => {
                    Self::load_with_ram(config, |vmm| vmm.load_snapshot(&snapshot))
                }
                Ok(None) | Err(NormalLoadError::Read { .. }) if config.memory.file.is_some() => {
                    Self::restore(config, Some(&path))
                }
                Ok(None) => Err(StartError::NothingIncoming),
                Err(error) => Err(error.into()),
            },
            (None, Some(Incoming::Defer)) if config.memory.file.is_some() => {
                Self::restore(config, None)
            }
            (None, Some(Incoming::Defer)) if config.incoming_ram.is_none() => {
                Self::load_with_ram(config, |vmm| {
                    vmm.awaits_ram = true;
                    Ok(())
                })
            }
            (None, Some(_)) => Err(StartError::NothingIncoming),
            (Some(_), None) => Err(StartError::IncomingMissing),
        }
    }

    fn boot(config: Config, phases: &Phases) -> Result<Self, StartError> {
        let log = logging::start(config.log, config.log_file.as_ref(), None)?;
        let signals = EndSignals::install(None).map_err(StartError::Signals)?;
        let qmp = match &config.qmp {
            Some(qmp) => Server::bind(&qmp.0)?,
            None => Server::none(),
        };
        let kernel = config.kernel.as_deref().ok_or(MachineError::NoKernel)?;
        let image = BootImage::open(kernel, config.initrd.as_deref())?;
        let ram = match &config.memory.file {
            Some(path) => RamBlock::open(config.memory.ram, path, true)?,
            None => RamBlock::create(config.memory.ram)?,
        };
        let host = SerialHost::open(&config.serial, None, &mut |_| None)?;
        let mut machine = Machine::new(config.machine(), ram, Some(image), None)?;
        // From here on, no state that was saved before fits a RAM file.
        machine.ram().claim_for_good()?;
        machine.boot(host)?;
        phases.end();
        Self::started(config, machine, qmp, log, signals)?.begin()
    }

    /// Waits for a guest that another process transfers.
    fn await_transfer(config: Config, channels: TransferChannels) -> Result<Self, StartError> {
        let log = logging::start(config.log, config.log_file.as_ref(), None)?;
        let signals = EndSignals::install(None).map_err(StartError::Signals)?;
        let qmp = match &config.qmp {
            Some(qmp) => Server::bind(&qmp.0)?,
            None => Server::none(),
        };
        let (machine, receiving) = receiving::listen(&config, channels)?;
        let mut vmm = Self::started(config, machine, qmp, log, signals)?;
        vmm.receiving = Some(receiving);
        Ok(vmm)
    }

    /// Continues, in a new process, a stranded guest that no binary could continue (see
    /// `fall_back`).
    fn rescue(config: Config, state: &Path) -> Result<Self, StartError> {
        let log = logging::start(config.log, config.log_file.as_ref(), None)?;
        let signals = EndSignals::install(None).map_err(StartError::Signals)?;
        let (state, _) = channel::read(state).map_err(LoadError::Channel)?;
        let path = config.incoming_ram.as_deref().unwrap_or(Path::new(""));
        let ram = File::options().read(true).write(true).open(path);
        let ram = ram.map_err(|source| StartError::OpenRam { path: path.to_owned(), source })?;
        let ram = RamBlock::adopt(config.memory.ram, ram.into())?;
        ram.lock().map_err(|error| match error {
            RamError::InUse { .. } => StartError::RamInUse(path.to_owned()),
            other => other.into(),
        })?;
        let image = config.kernel.as_deref();
        let image = image.map(|k| BootImage::open(k, config.initrd.as_deref())).transpose()?;
        let mut machine = Machine::new(config.machine(), ram, image, None)?;
        let state = machine.examine(state)?;
        let qmp = match &config.qmp {
            Some(qmp) => Server::bind(&qmp.0)?,
            None => Server::none(),
        };
        let host = SerialHost::open(&config.serial, None, &mut |_| None)?;
        machine.restore(host, state, &mut |_| ())?;
        // A file may hold a saved guest, whose state still fits if this process is refused.
        machine.ram().claim()?;
        machine.connect_irqfd();
        machine.set_run_state(RunState::Paused);
        // Last: once the guest runs, the saved state no longer matches the RAM.
        Self::started(config, machine, qmp, log, signals)?.begin()
    }

    /// Continues a guest that was saved (cpr-reboot), from the file `state` or, if that is `None`,
    /// from the one that `migrate-incoming` names.
    fn restore(config: Config, state: Option<&Path>) -> Result<Self, StartError> {
        let log = logging::start(config.log, config.log_file.as_ref(), None)?;
        let signals = EndSignals::install(None).map_err(StartError::Signals)?;
        let file = config.memory.file.as_deref().unwrap_or(Path::new(""));
        let ram = RamBlock::open(config.memory.ram, file, false)?;
        let image = config.kernel.as_deref();
        let image = image.map(|k| BootImage::open(k, config.initrd.as_deref())).transpose()?;
        let mut machine = Machine::new(config.machine(), ram, image, None)?;
        machine.set_run_state(RunState::Inmigrate);
        let qmp = match &config.qmp {
            Some(qmp) => Server::bind(&qmp.0)?,
            None => Server::none(),
        };
        let mut vmm = Self::started(config, machine, qmp, log, signals)?;
        vmm.awaits_saved = true;
        if let Some(state) = state {
            vmm.load_saved(state)?;
        }
        Ok(vmm)
    }

    /// Waits for a guest with its RAM, or loads it, as `load` does.
    fn load_with_ram(
        config: Config,
        load: impl FnOnce(&mut Self) -> Result<(), NormalLoadError>,
    ) -> Result<Self, StartError> {
        let log = logging::start(config.log, config.log_file.as_ref(), None)?;
        let signals = EndSignals::install(None).map_err(StartError::Signals)?;
        // The guest may reset itself.
        let kernel = config.kernel.as_deref().ok_or(MachineError::NoKernel)?;
        let image = Some(BootImage::open(kernel, config.initrd.as_deref())?);
        let ram = match &config.memory.file {
            Some(path) => RamBlock::open(config.memory.ram, path, true)?,
            None => RamBlock::create(config.memory.ram)?,
        };
        let mut machine = Machine::new(config.machine(), ram, image, None)?;
        machine.set_run_state(RunState::Inmigrate);
        let qmp = match &config.qmp {
            Some(qmp) => Server::bind(&qmp.0)?,
            None => Server::none(),
        };
        let mut vmm = Self::started(config, machine, qmp, log, signals)?;
        load(&mut vmm)?;
        Ok(vmm)
    }

    /// Starts a keeper if there is always to be one, and resumes the guest unless `--paused`.
    fn begin(mut self) -> Result<Self, StartError> {
        let paused = self.config.paused;
        if self.config.keeper == KeeperPolicy::On {
            self.run_state_to_be = (!paused).then_some(RunState::Running);
            self.guard(None)?;
            self.run_state_to_be = None;
        }
        if !paused {
            self.machine.resume();
        }
        Ok(self)
    }

    fn started(
        config: Config,
        machine: Machine,
        qmp: Server,
        log: Option<Arc<File>>,
        signals: EndSignals,
    ) -> Result<Self, StartError> {
        // Last: a reader of the PID file may expect a working VMM.
        let pid_file = config.pid_file.as_deref().map(PidFile::write).transpose()?;
        Ok(Self {
            machine,
            qmp,
            migration: Migration::default(),
            parameters: MigrationParameters::default(),
            log,
            signals,
            awaited: None,
            finishing: None,
            rehearsing: None,
            transferring: None,
            receiving: None,
            sending: None,
            loading: None,
            awaits_ram: false,
            filling: None,
            sent: false,
            saved: None,
            awaits_saved: false,
            leftovers: Vec::new(),
            dumps: Vec::new(),
            safeguard: None,
            stale: false,
            run_state_to_be: None,
            stopped: false,
            resets: ResetThrottle::new(),
            ended: None,
            pid_file,
            config,
        })
    }

    /// Continues the guest in `adopted`: as its new binary or, if `incoming` is `None`, as the old
    /// one after a fallback.
    fn take_over(
        config: Config,
        adopted: Adopted,
        incoming: Option<Incoming>,
        mut phases: Phases,
    ) -> Result<Self, StartError> {
        let Adopted { state: cpr, mut fds, memfd, fallback } = adopted;
        if let Some(why) = &fallback.returned {
            let name = CString::new(fallback.record.comm.to_vec()).unwrap_or_default();
            // Best effort: restores the process name from before the update.
            let _ = nix::sys::prctl::set_name(&name);
            tracing::warn!(%why, "cpr_returned");
        }
        fail_point!(Owned);
        let earlier = cpr.pid_file.clone().map(|path| OsString::from_vec(path.into_vec()).into());
        let pid_file = Some(PidFile::adopt(config.pid_file.as_deref(), earlier));
        let log = config.log_file.as_ref().and_then(|_| fds.take(LOG_FD, 0));
        let log = logging::start(config.log, config.log_file.as_ref(), log)?;
        phases.done(&"log");
        fail_point!(Log);
        let handed = fallback.record.fds.len();
        tracing::info!(fds = handed, run_state = ?cpr.run_state, "cpr_adopt");
        let [reader, writer] = SIGNALS_FDS.map(|name| fds.take(name, 0));
        let ends = reader.zip(writer).map(|(reader, writer)| [reader, writer]);
        let signals = EndSignals::install(ends).map_err(StartError::Signals)?;
        held_signals::release(&fallback.record.mask());
        phases.done(&"signals");
        fail_point!(Signals);
        let ram = match cpr.ram_blocks.as_slice() {
            [block] => fds
                .take(&format!("ram.{}", block.name), 0)
                .ok_or_else(|| StartError::NoRam(block.name.clone()))?,
            _ => return Err(StartError::NoRam(crate::memory::PC_RAM.to_owned())),
        };
        let ram = RamBlock::adopt(config.memory.ram, ram)?;
        phases.done(&"ram");
        fail_point!(Ram);
        let image = fds
            .take("boot.kernel", 0)
            .map(|kernel| BootImage::adopt(kernel, fds.take("boot.initrd", 0)));
        let mut qmp = cpr.qmp.clone();
        if let Some(traffic) = fds.take(TRAFFIC_FD, 0).map(File::from) {
            traffic::apply_traffic(&mut qmp, &whole(&traffic));
        }
        if fallback.returned.is_some() {
            // See `take_over`: the descriptors of clients that have left are missing.
            qmp.connections
                .retain(|client| fallback.record.fds.iter().any(|n| n.name == client.fd));
        }
        let qmp = Server::restore(qmp, |name| fds.take(name, 0))?;
        let (asked, handed_over) = (config.qmp.as_ref().map(|qmp| qmp.0.as_path()), qmp.path());
        if asked != handed_over {
            tracing::warn!(?asked, ?handed_over, "--qmp differs: the handed-over socket is kept");
        }
        fail_point!(Qmp);
        let host = SerialHost::open(&config.serial, cpr.serial_listener.as_ref(), &mut |name| {
            fds.take(name, 0)
        })?;
        fail_point!(Serial);
        let kvm = fds.take(KVM_FD, 0);
        #[cfg(feature = "failpoints")]
        let irqfd = fds.take(crate::machine::irqfd::NAME, 0);
        let (saved, binary) = (fds.take(SAVED_FD, 0), fds.take(BINARY_FD, 0));
        let page = fds.take(PAGE_FD, 0).and_then(|fd| {
            let page = CommitPage::adopt(fd);
            page.inspect_err(|error| tracing::warn!(%error, "cpr_commit_page")).ok()
        });
        let page = page.map(Arc::new);
        let timer = fds.take(TIMER_FD, 0).map(Watch::adopt);
        let dump = fds.take(DUMP_FD, 0).map(File::from);
        let mut unused = Vec::new();
        for (name, fd) in fds.leftover() {
            tracing::warn!(name, "cpr_fd_unused: the new command line does not use it");
            unused.push(fd);
        }
        let saved = saved.map(File::from);
        let carried =
            FallbackFds { memfd, saved, _binary: binary, page, timer, dump, _unused: unused };
        phases.done(&"qmp");
        let mut machine = Machine::new(config.machine(), ram, image, kvm)?;
        #[cfg(feature = "failpoints")]
        machine.adopt_irqfd(irqfd)?;
        fail_point!(Machine);
        machine.set_run_state(RunState::Inmigrate);
        let ago = Duration::from_nanos(monotonic_ns().saturating_sub(cpr.migration.began_ns));
        let events = cpr.migration.events;
        let mut migration = match cpr.live.clone() {
            Some(Live { updating: false, migration }) => Migration::standing_at(migration, events),
            _ => Migration::adopted(MigrationStatus::Device, events, ago),
        };
        migration.set_last_blackout(cpr.migration.last);
        let mut vmm = Self {
            machine,
            qmp,
            migration,
            parameters: MigrationParameters::default(),
            log,
            signals,
            awaited: Some(AwaitedState { cpr, host, phases, fallback, carried }),
            finishing: None,
            rehearsing: None,
            transferring: None,
            receiving: None,
            sending: None,
            loading: None,
            awaits_ram: false,
            filling: None,
            sent: false,
            saved: None,
            awaits_saved: false,
            leftovers: Vec::new(),
            dumps: Vec::new(),
            safeguard: None,
            stale: false,
            run_state_to_be: None,
            stopped: false,
            resets: ResetThrottle::new(),
            ended: None,
            pid_file,
            config,
        };
        match incoming {
            None => vmm.load(Source::Copy)?,
            Some(Incoming::File(path)) => vmm.load(Source::File(&path))?,
            Some(Incoming::Defer) => vmm.await_state()?,
            Some(Incoming::Transfer(_) | Incoming::Peer(_)) => {
                return Err(StartError::TransferAfterExec);
            }
        }
        Ok(vmm)
    }
}

/// Reads a whole memfd of ours; empty if it cannot be read.
fn whole(memfd: &File) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; memfd.metadata().map_or(0, |meta| meta.len() as usize)];
    match memfd.read_exact_at(&mut bytes, 0) {
        Ok(()) => bytes,
        Err(_) => Vec::new(),
    }
}
