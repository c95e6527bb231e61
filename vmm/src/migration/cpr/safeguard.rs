//! The safeguard continues the guest if this process fails while it runs the guest: the keeper, and
//! the up-to-date plan that it uses.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::memfd::MFdFlags;

use super::deadlines::{DEFAULT_DEADLINE, GRACE};
use super::fall_back::traffic::Traffic;
use super::fall_back::{self, Plan, Program, Record, Role};
use super::fd_names::{BINARY_FD, DUMP_FD, TRAFFIC_FD};
use super::named_fds::OutgoingFds;
use super::outgoing::{SerialHandOver, View, outgoing_fds};
use super::state::{CprState, Live, MigrationRecord, SealedFd, StateFd, WriteError};
use crate::keeper::commit::{CommitPage, PAGE_FD, TakeOver};
use crate::keeper::{self, Keeper, KeeperError, TIMER_FD};
use crate::machine::salvage::Salvage;
use crate::state::{STATE_VERSION, SavedState};
use crate::{memfd, own_binary};

/// Errors from setting up the safeguard.
#[derive(Debug, thiserror::Error)]
pub enum SafeguardError {
    /// The memfd for a state saved without this process cannot be created.
    #[error("cannot create a memfd for the state of the guest: {0}")]
    Dump(Errno),
    /// The CPR state cannot be written.
    #[error(transparent)]
    State(#[from] WriteError),
    /// This binary cannot be opened, so it cannot be executed again.
    #[error("cannot open the binary of this process to execute it again later: {0}")]
    Binary(io::Error),
}

/// What a process that takes a guest over received from its predecessor.
pub struct Predecessor<'a> {
    /// The fallback record; `None` in a process that was not executed by its predecessor.
    pub record: Option<&'a Record>,
    /// How it takes the guest over; until then, others act. `None`: it has the guest.
    pub take_over: Option<TakeOver>,
}

/// The keeper and its plan. Dropping it ends the keeper.
pub struct Safeguard {
    keeper: Option<Keeper>,
    record: Record,
    program: Arc<Program>,
    binary: OwnedFd,
    dump: OwnedFd,
    traffic: OwnedFd,
    /// How many times the state was published.
    generation: u64,
    /// Traffic on QMP's sockets since then.
    went: Traffic,
    salvage: Option<Arc<Salvage>>,
    /// Whether the keeper has been released and no longer continues the guest.
    released: Cell<bool>,
    /// The page with the commit point of a guest without a keeper.
    own_page: Option<Arc<CommitPage>>,
    plan: Option<Arc<Plan>>,
    published: Option<(CprState, SealedFd)>,
}

impl Safeguard {
    /// Starts a keeper if one is `wanted`; it uses what is [`publish`](Self::publish)ed. In a
    /// process that has just taken the guest over, there is a `predecessor`.
    pub fn start(
        wanted: bool,
        predecessor: Option<Predecessor<'_>>,
    ) -> Result<Self, SafeguardError> {
        let dump = memfd::create(c"cpr-salvage", MFdFlags::empty());
        let dump = dump.map_err(SafeguardError::Dump)?;
        let traffic = memfd::create(c"cpr-traffic", MFdFlags::empty());
        let traffic = traffic.map_err(SafeguardError::Dump)?;
        let binary = own_binary::open().map_err(SafeguardError::Binary)?;
        let deadline = DEFAULT_DEADLINE;
        let mut record = match predecessor.as_ref().and_then(|predecessor| predecessor.record) {
            Some(record) => record.prepare_next(deadline),
            None => Record::prepare(deadline),
        };
        let before = predecessor.and_then(|predecessor| predecessor.take_over);
        record.binary = binary.as_raw_fd();
        let program = Arc::new(Program::new(&record));
        let start = || Keeper::start(fall_back::continue_guest, before);
        let keeper = match wanted.then(start).transpose() {
            Ok(keeper) => keeper,
            Err(error) => {
                let error: KeeperError = error;
                tracing::warn!(%error, "cpr_keeper_missing: the guest is lost if this process dies");
                None
            }
        };
        record.helper = keeper.as_ref().map_or(0, |keeper| keeper.pid().as_raw());
        #[cfg(feature = "failpoints")]
        crate::failpoints::set_helper(record.helper);
        Ok(Self {
            keeper,
            record,
            program,
            binary,
            dump,
            traffic,
            generation: 0,
            went: Traffic::default(),
            released: Cell::new(false),
            own_page: None,
            salvage: None,
            plan: None,
            published: None,
        })
    }

    /// Returns the keeper's process ID; 0 if there is none.
    pub fn keeper_pid(&self) -> i32 {
        self.record.helper
    }

    /// Records whether clients were told that the guest has stopped.
    pub fn set_told_stopped(&self, stopped: bool) {
        if let Some(salvage) = &self.salvage {
            salvage.stop_reported.store(stopped, std::sync::atomic::Ordering::Relaxed);
        }
    }

    /// Forgets the machine, which is about to be torn down: until the next
    /// [`publish`](Self::publish), the guest is continued as after a reset.
    pub fn drop_machine(&mut self) {
        if self.published.is_some() {
            let record = self.record.clone();
            self.set_plan(&record, Role::Live(None), self.went.clone());
        }
        self.salvage = None;
    }

    /// Publishes the current state if it has changed, and then returns the generation, which must
    /// be passed to the QMP server ([`Server::hold`](crate::qmp::Server::hold)).
    pub fn publish(&mut self, view: &View<'_>) -> Result<Option<u64>, SafeguardError> {
        let serial = SerialHandOver::of(view.machine);
        let mut state = state_of(view, &serial, self.record.helper);
        let (updating, migration) = (view.migration.under_way(), view.migration.standing());
        state.live = Some(Live { updating, migration });
        let mut fds = outgoing_fds(view, &serial);
        fds.add(BINARY_FD, 0, self.binary.as_fd());
        fds.add(DUMP_FD, 0, self.dump.as_fd());
        fds.add(TRAFFIC_FD, 0, self.traffic.as_fd());
        self.hand_over(&mut fds);
        let list = fds.list();
        drop(fds);
        let known = self.published.as_ref().is_some_and(|(known, _)| *known == state)
            && self.record.fds == list;
        if known && self.salvage.is_some() && !view.qmp.has_traffic() {
            return Ok(None);
        }
        if self.salvage.is_none() {
            self.salvage = view.machine.salvage().map(Arc::new);
        }
        let state_fd = StateFd::create()?;
        let mut record = self.record.clone();
        record.fds = list;
        record.state = state_fd.as_raw_fd();
        let sealed = state_fd.write(&record, &state)?;
        self.record.fds.clone_from(&record.fds);
        self.record.state = record.state;
        self.generation += 1;
        let traffic = Traffic { generation: self.generation, clients: view.qmp.traffic() };
        self.went = traffic.clone();
        self.set_plan(&record, Role::Live(self.salvage.clone()), traffic);
        // The previous one is closed only now that no plan refers to it.
        self.published = Some((state, sealed));
        Ok(Some(self.generation))
    }

    /// Adds the keeper's descriptors that the next process needs.
    pub fn hand_over<'a>(&'a self, fds: &mut OutgoingFds<'a>) {
        if let Some(page) = self.page() {
            fds.add(PAGE_FD, 0, page.as_fd());
        }
        if let Some(keeper) = &self.keeper {
            fds.add(TIMER_FD, 0, keeper.watch().fd());
        }
    }

    fn page(&self) -> Option<&Arc<CommitPage>> {
        self.keeper.as_ref().map(Keeper::page).or(self.own_page.as_ref())
    }

    /// Returns the page that decides between this process, its keeper and one that the guest is
    /// offered to. Publish the state afterwards: a process that continues the guest must know the
    /// page.
    pub fn page_for_offer(&mut self) -> io::Result<Arc<CommitPage>> {
        if let Some(page) = self.page() {
            return Ok(page.clone());
        }
        let page = Arc::new(CommitPage::create()?);
        self.own_page = Some(page.clone());
        Ok(page)
    }

    fn set_plan(&mut self, record: &Record, role: Role, traffic: Traffic) {
        let page = self.page().cloned();
        let plan = Plan::with(self.program.clone(), record, role, page);
        let plan = Arc::new(plan.with_traffic(traffic));
        fall_back::live(Some(plan.clone()));
        self.plan = Some(plan);
    }

    /// Makes the guest continue from the state that `record` names until the result is dropped, and
    /// then as before. The guest must not run meanwhile.
    pub fn saved(&self, record: &Record) -> SavedPlan {
        let page = self.page().cloned();
        let role = Role::Live(self.salvage.clone());
        fall_back::live(Some(Arc::new(Plan::with(self.program.clone(), record, role, page))));
        SavedPlan { before: self.plan.clone() }
    }

    /// Releases the keeper: it only holds the old address space from now on, and does not continue
    /// the guest.
    pub fn release_keeper(&self) {
        if let Some(keeper) = &self.keeper {
            keeper.page().dismiss_or_end();
            self.released.set(true);
        }
    }

    /// Returns whether the keeper has been released, by this process or by a process that the guest
    /// was offered to.
    pub fn is_released(&self) -> bool {
        self.released.get() || self.page().is_some_and(|page| !page.is_undecided())
    }

    /// Returns a descriptor that becomes readable when the keeper ends, which it does only by
    /// accident.
    pub fn keeper_ended(&self) -> Option<BorrowedFd<'_>> {
        self.keeper.as_ref().map(Keeper::ended)
    }

    /// Returns whether the keeper has ended.
    pub fn has_lost_its_keeper(&self) -> bool {
        self.keeper.as_ref().is_some_and(|keeper| !keeper::is_watching(keeper.pid().as_raw()))
    }

    /// Makes the keeper replace this process, or what it executes, some time after its deadline,
    /// until the result is dropped.
    pub fn watched(&self, deadline: Duration) -> Watched<'_> {
        self.expect_end_within(Some(deadline + GRACE));
        Watched(self)
    }

    /// Sets the deadline after which the keeper replaces this process; `None`: no deadline.
    pub fn expect_end_within(&self, after: Option<Duration>) {
        if let Some(keeper) = &self.keeper
            && let Err(errno) = keeper.watch().set(after)
        {
            tracing::warn!(%errno, "cpr_keeper_without_deadline");
        }
    }
}

/// See [`Safeguard::watched`].
#[must_use = "dropping it removes the deadline"]
pub struct Watched<'a>(&'a Safeguard);

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        self.0.expect_end_within(None);
    }
}

impl Drop for Safeguard {
    fn drop(&mut self) {
        // In this order: the keeper's plan must outlive it.
        self.keeper = None;
        fall_back::live(None);
    }
}

/// While this exists, the guest continues from the saved state. Dropping it returns to the state
/// before.
#[must_use = "dropping it returns to the previous plan"]
pub struct SavedPlan {
    before: Option<Arc<Plan>>,
}

impl Drop for SavedPlan {
    fn drop(&mut self) {
        fall_back::live(self.before.take());
    }
}

/// Returns the CPR state of the VMM as it is now. It names no saved state yet.
fn state_of(view: &View<'_>, serial: &SerialHandOver, keeper: i32) -> CprState {
    CprState {
        run_state: view.run_state,
        ram_blocks: vec![view.machine.ram().info()],
        channel: SavedState::default().encode(STATE_VERSION).1,
        qmp: view.qmp.save(),
        serial_listener: serial.listener.clone(),
        pending_events: view.machine.unhandled_events(),
        helper: (keeper != 0).then_some(keeper),
        migration: MigrationRecord {
            events: view.migration.events(),
            began_ns: 0,
            paused_ns: 0,
            rehearsal_ns: None,
            last: view.migration.last_blackout(),
        },
        parameters: view.parameters.clone(),
        pid_file: view.pid_file.clone().map(|path| path.into_os_string().into_vec().into()),
        msr_choice: view.machine.msr_choice(),
        live: None,
    }
}
