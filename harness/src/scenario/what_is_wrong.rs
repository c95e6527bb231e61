//! What is wrong with an update that must not succeed, in the words of its scenario.

use serde::Serialize;

use super::command_kind::CommandKind;
use super::fault::Inject;
use super::model::{Case, Channel, Expect, Migrate, Step, Vm};

impl Migrate {
    /// What is wrong with it on `vm`: what `scenarios/ERRORS.md` tells failures apart by.
    pub fn what_is_wrong(&self, vm: &Vm, injected: Option<&Inject>) -> String {
        let mut wrong = Vec::new();
        if let Some(Inject { point, action }) = injected {
            wrong.push(format!("{action} at {point}"));
        }
        if !vm.share {
            wrong.push("RAM is private".to_owned());
        }
        if self.command != CommandKind::Good {
            wrong.push(format!("command {}", word(&self.command)));
        }
        if self.channel != Channel::File {
            wrong.push(format!("channel {}", word(&self.channel)));
        }
        if self.rehearsal == Some(false) && injected.is_none() {
            wrong.push("not rehearsed".to_owned());
        }
        if wrong.is_empty() { "nothing".to_owned() } else { wrong.join(", ") }
    }
}

impl Migrate {
    /// Its command, or its channel where only that is bad.
    pub fn kind(&self) -> String {
        match (self.command, self.channel) {
            (CommandKind::Good, Channel::File) => word(&self.command),
            (CommandKind::Good, channel) => format!("channel {}", word(&channel)),
            (command, _) => word(&command),
        }
    }
}

impl Case {
    /// What is wrong with each of its updates that must not succeed.
    pub fn failures(&self) -> Vec<String> {
        let mut injected = None;
        let mut failures = Vec::new();
        for step in &self.steps {
            match step {
                Step::Inject(inject) => injected = Some(inject),
                Step::Migrate(migrate) => {
                    let injected = injected.take();
                    // What may succeed need not have an error; one that nobody is left to ask has none.
                    let none = matches!(
                        migrate.expect,
                        Expect::Completed
                            | Expect::Kept
                            | Expect::Revived
                            | Expect::Survives
                            | Expect::Ended
                    );
                    if !none {
                        failures.push(migrate.what_is_wrong(&self.vm, injected));
                    }
                }
                _ => {}
            }
        }
        failures
    }
}

/// As it stands in a scenario.
fn word(value: &impl Serialize) -> String {
    let value = toml::Value::try_from(value).ok();
    value.and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_wrong_is_told_in_the_words_of_the_scenario() {
        let migrate = Migrate {
            command: CommandKind::EaccesDirectory,
            channel: Channel::ReadOnly,
            rehearsal: Some(false),
            ..Migrate::default()
        };
        let private = Vm { share: false, ..Vm::default() };
        assert_eq!(
            migrate.what_is_wrong(&private, None),
            "RAM is private, command eacces-directory, channel read-only, not rehearsed"
        );
        assert_eq!(Migrate::default().what_is_wrong(&Vm::default(), None), "nothing");
    }
}
