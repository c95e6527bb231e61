//! Holds an update at a point while another command or a misbehaving client arrives.

use std::path::{Path, PathBuf};

use procfs::process::Process;
use serde_json::json;

use crate::check::gone::Cause;
use crate::check::{Action, Ending, Finding, interrupted};
use crate::observe::poll::{self, Deadline};
use crate::observe::qmp::{Command, Qmp, QmpFault, label};
use crate::run::failure::StepError;
use crate::run::peer::misbehaving_client::MisbehavingClient;
use crate::run::session::clients::connect;
use crate::run::session::{Session, fits_protocol};
use crate::run::update::hold::Hold;
use crate::scenario::interrupt::REHEARSING;
use crate::scenario::{Inject, Interrupt, Interruption, Migrate};

/// The rehearsal timeout in milliseconds: longer than any update is held.
const REHEARSAL_MS: u64 = 15_000;

impl Session<'_> {
    /// Interrupts an update. Returns `None` if the VMM has quit, as it should.
    pub(super) fn interrupt(&mut self, wanted: &Interrupt) -> Result<Option<Action>, StepError> {
        let Interrupt { point, with } = wanted;
        let (with, early, ran) = (*with, point == REHEARSING, self.run_state.is_running());
        // During the rehearsal, the VMM scans the commands that follow `migrate` for a cancel.
        let before = early || point == "rehearsal" && with.cancels();
        let hold = Hold::new(&self.work, self.tried)?;
        let held_there = Inject { point: point.clone(), action: hold.action() };
        let rehearsal = Some(early || point == "rehearsal");
        let migrate = Migrate { rehearsal, ..Migrate::default() };
        let (mut command, channel) = self.prepare(&migrate, (!early).then_some(&held_there))?;
        if let (true, Some(words)) = (early, &mut command.words) {
            words[0] = hold.in_rehearsal(&words[0])?;
            self.note_files();
        }
        self.set_parameters(&command, &migrate)?;
        let parameters = json!({ "x-cpr-exec-rehearsal-timeout": REHEARSAL_MS });
        self.qmp.execute(Command::new("migrate-set-parameters", parameters))?;
        self.note_parameters()?;
        let failed = |error: std::io::Error| {
            StepError::Process(format!("client interrupting with {with:?}: {error}"))
        };
        let socket = PathBuf::from(&self.files.qmp);
        let descriptors = self.descriptors();
        // While one client waits for its update, the VMM answers only the others.
        let mut other = match early {
            true => {
                Some(connect(&self.files.qmp, &self.evidence, &mut self.vm, self.options, "-3")?)
            }
            false => None,
        };
        let mut misbehaving_client = ClientScript::before(with, &socket).map_err(failed)?;
        let from = self.qmp.event_count();
        let update = Command::new("migrate", channel.arguments.clone());
        let asked = self.qmp.send(std::slice::from_ref(&update))?[0];
        let held = hold.await_held(self.options.patience.update, || self.check_process())?;
        self.evidence.timeline.say("harness", format!("held at {point}: {with:?}"));
        let message = match with {
            Interruption::Migrate => Some(update),
            _ => message(with),
        };
        let client = other.as_mut().unwrap_or(&mut self.qmp);
        let id = match &message {
            Some(message) => {
                Some((message.name.clone(), client.send(std::slice::from_ref(message))?[0]))
            }
            None => None,
        };
        misbehaving_client.meanwhile(with, &socket).map_err(failed)?;
        if with == Interruption::GuestReset {
            self.release_guest()?;
            self.await_standstill()?;
        }
        if let (Some((name, id)), Some(other)) = (&id, &other) {
            check_reply(with, other, name, *id)?;
        }
        // A VMM that was told to quit need not finish the update.
        drop(held);
        if with == Interruption::Quit {
            drop(other);
            self.await_gone(Cause::Quit)?;
            let events = self.labels(from);
            return match interrupted::check(with, early, ran, &events) {
                Ok(()) => Ok(None),
                Err(why) => Err(StepError::Checks(vec![Finding::new("events", why)])),
            };
        }
        let ending = match self.qmp.answer("migrate", asked) {
            Ok(_) => self.await_ending(from)?,
            Err(QmpFault::Refused { error, .. }) => Ending::Refused(error.desc),
            Err(other) => return Err(other.into()),
        };
        if ending == Ending::Completed {
            self.note_update(channel.state.clone());
        }
        if let (Some((name, id)), None) = (&id, &other) {
            check_reply(with, &self.qmp, name, *id)?;
        }
        match with {
            Interruption::Stop => self.note_stop(),
            Interruption::Cont => {
                self.note_cont();
                self.await_boot(self.boots)?;
            }
            Interruption::Reset | Interruption::GuestReset => {
                self.note_reset();
                if ran {
                    self.await_boot(self.boots)?;
                }
            }
            _ => {}
        }
        misbehaving_client.after(&self.labels(from)).map_err(failed)?;
        fits_protocol(&other.as_ref().map(Qmp::violations).unwrap_or_default())?;
        drop(other);
        // Otherwise the next observation would see the descriptors of clients that have left. If
        // they stay open, a check reports them.
        poll::until(Deadline::after(self.options.patience.settle), || {
            (self.descriptors() == descriptors).then_some(())
        });
        Ok(Some(Action::Interrupted { with, early: before, ending }))
    }

    /// Waits until the first vCPU's heartbeat stops: it has made a request, and stands still until
    /// that is done.
    fn await_standstill(&mut self) -> Result<(), StepError> {
        let Some(page) = self.seen.as_ref().map(|seen| seen.page.clone()) else { return Ok(()) };
        let (limit, still) = (self.options.patience.guest, self.options.patience.still);
        let beat = || page.read().ok().map(|view| view.heartbeats(1));
        let stands = poll::until(Deadline::after(limit), || {
            let first = beat();
            let moved = poll::during(still, || (beat() != first).then_some(()));
            moved.is_none().then_some(())
        });
        let what = "the first vCPU to stand still".to_owned();
        stands.ok_or_else(|| StepError::Guest { what, limit, seen: format!("{:?}", beat()) })
    }

    /// Returns how many descriptors the VMM has open.
    fn descriptors(&self) -> usize {
        let count = Process::new(self.vm.pid()).and_then(|process| process.fd_count());
        count.unwrap_or(0)
    }

    pub(super) fn labels(&self, from: usize) -> Vec<String> {
        self.qmp.events_from(from).iter().map(|arrived| label(&arrived.event)).collect()
    }
}

/// Checks the VMM's answer to the interrupting command.
fn check_reply(with: Interruption, client: &Qmp, name: &str, id: u64) -> Result<(), StepError> {
    match (client.answer(name, id), with) {
        (Ok(_), Interruption::Migrate) => {
            Err(StepError::Process("a second update was accepted while one was under way".into()))
        }
        (Ok(_), _) | (Err(QmpFault::Refused { .. }), Interruption::Migrate) => Ok(()),
        // The VMM may exit before it writes its answer.
        (Err(QmpFault::Closed { .. }), Interruption::Quit) => Ok(()),
        (Err(error), _) => Err(error.into()),
    }
}

/// Returns the interrupting command; `None` for the guest, and for a client that misbehaves.
fn message(with: Interruption) -> Option<Command> {
    let name = match with {
        Interruption::Stop => "stop",
        Interruption::Cont => "cont",
        Interruption::Reset => "system_reset",
        Interruption::Quit => "quit",
        Interruption::MigrateCancel => "migrate_cancel",
        Interruption::Migrate
        | Interruption::GuestReset
        | Interruption::Garbage
        | Interruption::Half
        | Interruption::Silent => return None,
    };
    Some(Command::plain(name))
}

/// The misbehaving client of an interruption, if it has one.
enum ClientScript {
    None,
    Garbage(MisbehavingClient),
    Half(MisbehavingClient),
    Silent(MisbehavingClient),
}

impl ClientScript {
    fn before(with: Interruption, socket: &Path) -> std::io::Result<Self> {
        Ok(match with {
            Interruption::Half => {
                let mut half = MisbehavingClient::connect(socket)?;
                half.begin()?;
                Self::Half(half)
            }
            Interruption::Silent => {
                let mut silent = MisbehavingClient::connect(socket)?;
                silent.ask_without_reading()?;
                Self::Silent(silent)
            }
            _ => Self::None,
        })
    }

    fn meanwhile(&mut self, with: Interruption, socket: &Path) -> std::io::Result<()> {
        match self {
            Self::None if with == Interruption::Garbage => {
                *self = Self::Garbage(MisbehavingClient::garbage(socket)?);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn after(self, events: &[String]) -> std::io::Result<()> {
        match self {
            Self::None => Ok(()),
            Self::Garbage(mut garbage) => garbage.expect_error_or_close(),
            Self::Half(mut half) => half.complete(),
            Self::Silent(mut silent) => silent.expect_unread_events(events),
        }
    }
}
