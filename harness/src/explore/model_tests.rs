//! Tests of the reference model on its own.

use rstest::rstest;

use super::full_backend::FullBackend;
use super::grammar::Grammar;
use super::possible::{is_possible, keep_possible};
use super::vocabulary::Word;
use crate::model::reference::{Migration, Model, Run, State};
use crate::scenario::{Expect, Step, Vm};

#[derive(serde::Deserialize)]
struct Steps {
    steps: Vec<Step>,
}

/// Parses steps without the scenario parser, which rejects senseless ones.
fn steps(text: &str) -> Vec<Step> {
    toml::from_str::<Steps>(&format!("steps = [\"boot\", {text}]")).unwrap().steps
}

fn after(vm: &Vm, text: &str) -> State {
    let model = Model::new(vm, true);
    steps(text).iter().fold(model.boot(), |state, step| model.after(&state, step))
}

#[rstest]
#[case(r#""stop""#, Run::Paused)]
#[case(r#""stop", "cont""#, Run::Running)]
#[case(r#""cont", "stop", "stop""#, Run::Paused)]
#[case(r#""reset""#, Run::Running)]
#[case(r#""stop", "reset""#, Run::Prelaunch)]
#[case(r#""stop", "reset", "stop""#, Run::Prelaunch)]
#[case(r#""stop", "reset", { migrate = {} }"#, Run::Prelaunch)]
#[case(r#""stop", { bring = "running" }"#, Run::Running)]
#[case(r#""stop", { race = ["cont", "migrate", "stop"] }"#, Run::Paused)]
#[case(r#"{ race = ["stop", "reset", "migrate"] }"#, Run::Prelaunch)]
#[case(r#"{ interrupt = { point = "save", with = "stop" } }"#, Run::Paused)]
#[case(r#""stop", { interrupt = { point = "rehearsing", with = "cont" } }"#, Run::Running)]
#[case(r#"{ signal = { point = "save", signal = "SIGINT" } }"#, Run::Gone)]
#[case(r#"{ race = ["migrate", "quit"] }"#, Run::Gone)]
#[case(r#""quit""#, Run::Gone)]
fn steps_lead_to_a_run_state(#[case] text: &str, #[case] run: Run) {
    assert_eq!(after(&Vm::default(), text).run, run);
}

#[rstest]
#[case(r#""cont""#, Migration::None)]
#[case(r#"{ migrate = {} }"#, Migration::Completed)]
#[case(
    r#"{ migrate = {} }, { migrate = { command = "enoent", expect = { failed = {} } } }"#,
    Migration::Failed
)]
#[case(
    r#"{ migrate = {} }, { migrate = { channel = "tcp", expect = { refused = "" } } }"#,
    Migration::Completed
)]
#[case(r#"{ migrate = { expect = "any" } }"#, Migration::Unknown)]
#[case(r#"{ interrupt = { point = "rehearsing", with = "migrate-cancel" } }"#, Migration::None)]
#[case(r#"{ interrupt = { point = "save", with = "migrate-cancel" } }"#, Migration::Completed)]
#[case(r#"{ migrate = {} }, { kill-in-update = {} }"#, Migration::None)]
fn updates_lead_to_a_migration_status(#[case] text: &str, #[case] migration: Migration) {
    assert_eq!(after(&Vm::default(), text).migration, migration);
}

#[rstest]
#[case("", r#"{ wait = { heartbeats = 1 } }"#, true)]
#[case(r#""stop""#, r#"{ wait = { heartbeats = 1 } }"#, false)]
#[case("", r#"{ wait = { marker = 1 } }"#, true)]
#[case("", r#"{ wait = { marker = 2 } }"#, false)]
#[case("", r#"{ race = ["guest-reset"] }"#, false)]
#[case(r#"{ wait = { marker = 1 } }"#, r#"{ go = 1 }"#, true)]
#[case(
    r#"{ wait = { marker = 1 } }, { go = 1 }, { wait = { marker = 2 } }"#,
    r#"{ go = 2 }"#,
    false
)]
#[case(
    r#"{ wait = { marker = 1 } }, { go = 1 }, { wait = { marker = 2 } }"#,
    r#"{ race = ["guest-reset", "migrate"] }"#,
    true
)]
#[case(
    r#"{ wait = { marker = 1 } }, "stop", "reset", "cont""#,
    r#"{ wait = { marker = 1 } }"#,
    true
)]
#[case("", r#"{ migrate = { command = "true", rehearsal = false, expect = "any" } }"#, false)]
#[case("", r#"{ migrate = { command = "enoent", expect = "any" } }"#, false)]
#[case("", r#"{ serial = "leave" }"#, false)]
#[case(r#"{ limit = { nofile = "+1" } }"#, r#"{ limit = "restore" }"#, true)]
#[case(r#"{ limit = { nofile = "+1" } }"#, r#"{ race = ["migrate"] }"#, false)]
#[case(r#""quit""#, r#""stop""#, false)]
fn steps_are_possible_only_in_some_states(
    #[case] before: &str,
    #[case] step: &str,
    #[case] possible: bool,
) {
    let vm = Vm { cmdline: "markers=2 end=reset".into(), ..Vm::default() };
    let model = Model::new(&vm, true);
    let step = steps(&format!("{step},")).remove(1);
    assert_eq!(is_possible(&model, &after(&vm, before), &step), possible);
}

#[test]
fn repairing_drops_impossible_steps_and_sets_expectations() {
    let model = Model::new(&Vm::default(), true);
    let text = r#""stop", { serial = "leave" }, { migrate = { command = "enoent", expect = "any" } },
        { migrate = { command = "replaces-state", expect = "any" } }, { wait = { heartbeats = 1 } }"#;
    let wanted = r#""stop", { migrate = { command = "enoent",
        expect = { refused = "cannot execute cpr-exec-command" } } }"#;
    assert_eq!(keep_possible(&model, &steps(text)[1..]), steps(wanted)[1..]);
}

/// Visits many states and all steps possible in them.
fn each_step(mut look: impl FnMut(&Model, &State, &Word, &State)) {
    let grammar = Grammar::new(&FullBackend);
    for seed in 0..60 {
        let sequence = grammar.draw(seed, 20);
        let model = grammar.model(&sequence.vm);
        let mut state = model.boot();
        for step in &sequence.steps[1..] {
            if state.armed.is_none() {
                for word in grammar.vocabulary().fitting(&model, &state) {
                    let mut next = state.clone();
                    for step in &word.steps {
                        let step = super::possible::completed(&model, &next, step);
                        next = model.after(&next, &step);
                    }
                    look(&model, &state, word, &next);
                }
            }
            state = model.after(&state, step);
        }
    }
}

#[test]
fn no_update_changes_the_run_state() {
    let mut seen = 0;
    each_step(|model, before, word, after| {
        let Some(Step::Migrate(migrate)) = word.steps.last() else { return };
        seen += 1;
        assert_eq!(before.run, after.run, "{word:?}");
        let step = super::possible::completed(model, before, &Step::Migrate(migrate.clone()));
        let Step::Migrate(migrate) = step else { return };
        if word.steps.len() == 1 && !matches!(migrate.expect, Expect::Completed | Expect::Any) {
            assert!(after.after_failure, "{word:?}");
            let said = [before.migration, Migration::Failed, Migration::Unknown];
            assert!(said.contains(&after.migration), "{word:?}");
        }
    });
    assert!(seen > 5_000, "{seen}");
}

#[test]
fn only_cont_or_a_restart_lets_a_guest_run() {
    each_step(|_, before, word, after| {
        if before.run == Run::Running || after.run != Run::Running {
            return;
        }
        let lets_run = |step: &Step| match step {
            Step::Cont | Step::Bring(_) | Step::KillInUpdate(_) => true,
            Step::Race(commands) => commands.contains(&crate::scenario::RaceCommand::Cont),
            Step::Interrupt(interrupt) => interrupt.with == crate::scenario::Interruption::Cont,
            _ => false,
        };
        assert!(word.steps.iter().any(lets_run), "{word:?}");
    });
}

#[test]
fn a_vm_that_stays_up_can_be_ended() {
    each_step(|model, _, word, after| {
        let up = after.run != Run::Gone;
        assert_eq!(up, is_possible(model, after, &Step::Quit), "{word:?}");
    });
}
