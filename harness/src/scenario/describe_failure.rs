//! Describes why an update must not succeed, in the terms of its scenario.

use serde::Serialize;

use super::case::Case;
use super::command_kind::CommandKind;
use super::fault::Inject;
use super::mode::{Mode, NewVmm};
use super::step::Step;
use super::update::{Channel, Expect, Migrate};
use super::vm::Vm;

impl Migrate {
    /// Describes what is wrong with the update on `vm`; `scenarios/ERRORS.md` uses it as the key.
    pub fn describe_failure(&self, vm: &Vm, injected: Option<&Inject>) -> String {
        let mut wrong = Vec::new();
        if let Some(Inject { point, action }) = injected {
            wrong.push(format!("{action} at {point}"));
        }
        if !vm.share {
            wrong.push("RAM is private".to_owned());
        }
        if matches!(self.mode, Mode::CprReboot | Mode::Normal) {
            wrong.push(format!("mode {}", self.mode.name()));
        }
        wrong.extend(self.bad_new_vmm());
        if self.command != CommandKind::Good {
            wrong.push(format!("command {}", word(&self.command)));
        }
        if self.channel != Channel::File {
            wrong.push(format!("channel {}", word(&self.channel)));
        }
        if let Some(ms) = self.max_downtime_ms.filter(|ms| *ms > 0) {
            wrong.push(format!("at most {ms} ms of downtime"));
        }
        if self.rehearsal == Some(false) && injected.is_none() {
            wrong.push("not rehearsed".to_owned());
        }
        if wrong.is_empty() { "nothing".to_owned() } else { wrong.join(", ") }
    }
}

impl Migrate {
    /// The update's command, or its channel if only the channel is bad.
    pub fn kind(&self) -> String {
        if let Some(new_vmm) = self.bad_new_vmm() {
            return new_vmm;
        }
        match (self.command, self.channel) {
            (CommandKind::Good, Channel::File) => word(&self.command),
            (CommandKind::Good, channel) => format!("channel {}", word(&channel)),
            (command, _) => word(&command),
        }
    }
}

impl Migrate {
    /// Whether its error depends on chance: in mode `normal` the old VMM notices the end of the new one
    /// in whichever step of the protocol it is by then.
    pub fn error_varies(&self) -> bool {
        let dies = self.new_vmm_fault.is_some() || self.new_vmm == NewVmm::KilledConnected;
        self.mode == Mode::Normal && self.has_waiting_vmm() && dies
    }

    fn bad_new_vmm(&self) -> Option<String> {
        match &self.new_vmm_fault {
            Some(Inject { point, action }) => Some(format!("new VMM with {action} at {point}")),
            None if self.new_vmm.is_default() => None,
            None => Some(format!("new VMM {}", word(&self.new_vmm))),
        }
    }
}

impl Case {
    /// Describes what is wrong with each update of the case that must not succeed.
    pub fn failures(&self) -> Vec<String> {
        let mut injected = None;
        let mut failures = Vec::new();
        for step in &self.steps {
            match step {
                Step::Inject(inject) => injected = Some(inject),
                Step::Migrate(migrate) => {
                    let injected = injected.take();
                    // An update that may succeed need not report an error, and a VMM that ends
                    // cannot report one.
                    let none = matches!(
                        migrate.expect,
                        Expect::Completed
                            | Expect::Cancelled
                            | Expect::Any
                            | Expect::Revived
                            | Expect::Survives
                            | Expect::Ended
                    );
                    if !none && !migrate.error_varies() {
                        failures.push(migrate.describe_failure(&self.vm, injected));
                    }
                }
                _ => {}
            }
        }
        failures
    }
}

/// The value as written in a scenario.
fn word(value: &impl Serialize) -> String {
    let value = toml::Value::try_from(value).ok();
    value.and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_is_listed_in_scenario_terms() {
        let migrate = Migrate {
            command: CommandKind::EaccesDirectory,
            channel: Channel::ReadOnly,
            rehearsal: Some(false),
            ..Migrate::default()
        };
        let private = Vm { share: false, ..Vm::default() };
        assert_eq!(
            migrate.describe_failure(&private, None),
            "RAM is private, command eacces-directory, channel read-only, not rehearsed"
        );
        assert_eq!(Migrate::default().describe_failure(&Vm::default(), None), "nothing");
        let (mode, new_vmm) = (Mode::Normal, NewVmm::OtherCpus);
        let copy = Migrate { mode, channel: Channel::Unix, new_vmm, ..Migrate::default() };
        let told = "mode normal, new VMM other-cpus, channel unix";
        assert_eq!(copy.describe_failure(&Vm::default(), None), told);
        assert_eq!(copy.kind(), "new VMM other-cpus");
        assert!(!copy.error_varies());
        assert!(Migrate { new_vmm: NewVmm::KilledConnected, ..copy }.error_varies());
    }
}
