//! From the text of a scenario file to its cases.

use serde::Deserialize;
use xxhash_rust::xxh3::xxh3_64;

use super::command_kind::CommandKind;
use super::fault::every_action;
use super::interrupt::every_interruption;
use super::limit::Limit;
use super::model::{Case, Channel, Expect, Repeat, Step, Vm};
use super::signal::ending_by;
use super::{ScenarioError, matrix};

/// Time for one case unless the scenario says otherwise.
const DEADLINE_MS: u64 = 60_000;
/// More vCPUs than this no guest can use.
const MAX_CPUS: u32 = guest_images::mailbox::MAX_CPUS as u32;

/// A scenario file, its matrix already put in place.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    summary: String,
    #[serde(default)]
    vm: Vm,
    steps: Vec<Step>,
    seed: Option<u64>,
    deadline_ms: Option<u64>,
    #[serde(default)]
    on_request: bool,
    #[serde(default)]
    #[allow(dead_code, reason = "read before, by `matrix`; here it must only be a known key")]
    matrix: toml::Table,
}

/// The cases of scenario `name` (`theme/scenario`), whose `text` stands in `file`.
pub fn parse(file: &str, name: &str, text: &str) -> Result<Vec<Case>, ScenarioError> {
    matrix::choices(file, text)?
        .iter()
        .map(|choice| {
            let text = matrix::substitute(file, text, choice)?;
            let scenario: File =
                toml::from_str(&text).map_err(|e| ScenarioError::syntax(file, &text, &e))?;
            let name = format!("{name}{}", matrix::suffix(choice));
            let case = Case {
                // Masked, because TOML's integers are signed.
                seed: scenario.seed.unwrap_or_else(|| xxh3_64(name.as_bytes()) >> 1),
                name,
                summary: scenario.summary,
                deadline_ms: scenario.deadline_ms.unwrap_or(DEADLINE_MS),
                on_request: scenario.on_request,
                steps: expand(scenario.steps),
                vm: scenario.vm,
            };
            check(file, &case)?;
            Ok(case)
        })
        .collect()
}

/// `faults`, `signal`, `interrupts` and `repeat` are many steps.
pub(crate) fn expand(steps: Vec<Step>) -> Vec<Step> {
    let expand = |step| match step {
        Step::Faults(point) => every_action(&point),
        Step::Repeat(Repeat { times, steps }) => {
            let round = expand(steps);
            std::iter::repeat_n(round, times as usize).flatten().collect()
        }
        Step::Signal(signal) => ending_by(signal).into(),
        Step::Interrupts(point) => every_interruption(&point),
        step => vec![step],
    };
    steps.into_iter().flat_map(expand).collect()
}

/// Reads one expanded case, as an evidence folder holds it.
pub fn parse_case(file: &str, text: &str) -> Result<Case, ScenarioError> {
    let case: Case = toml::from_str(text).map_err(|e| ScenarioError::syntax(file, text, &e))?;
    check(file, &case)?;
    Ok(case)
}

fn check(file: &str, case: &Case) -> Result<(), ScenarioError> {
    let nonsense =
        |message: String| Err(ScenarioError::sense(file, format!("{}: {message}", case.name)));
    if case.steps.first() != Some(&Step::Boot) {
        return nonsense("the first step must be \"boot\"".into());
    }
    if guest_images::guest(&case.vm.guest).is_none() {
        let all: Vec<&str> = guest_images::GUESTS.iter().map(|guest| guest.name).collect();
        return nonsense(format!("no guest `{}`; there are {}", case.vm.guest, all.join(", ")));
    }
    if !(1..=MAX_CPUS).contains(&case.vm.cpus) {
        return nonsense(format!("vm.cpus is {}, must be 1 to {MAX_CPUS}", case.vm.cpus));
    }
    if case.vm.memory.0 < 2 << 20 {
        return nonsense(format!("vm.memory is {}, must be 2M or more", case.vm.memory));
    }
    let last = case.steps.len() - 1;
    let (mut limited, mut saved) = (false, false);
    for (index, step) in case.steps.iter().enumerate() {
        let number = index + 1;
        match step {
            Step::Boot if index > 0 => {
                return nonsense(format!("step {number}: the VM is booted already"));
            }
            step if step.ends() && index < last => {
                return nonsense(format!("step {number} ends the VMM; nothing can follow it"));
            }
            Step::Race(commands) if commands.is_empty() => {
                return nonsense(format!("step {number}: a race without commands"));
            }
            Step::KillInUpdate(kill) if kill.repeat == 0 => {
                return nonsense(format!("step {number}: repeat is 0"));
            }
            Step::Limit(Limit::Restore) if !limited => {
                return nonsense(format!("step {number}: no limit was set that could be restored"));
            }
            Step::Limit(limit) if limit.is_relative_to_nothing() => {
                return nonsense(format!(
                    "step {number}: nproc and fsize are what they are set to; write no +"
                ));
            }
            Step::Limit(limit) => limited = *limit != Limit::Restore,
            Step::Binary(_) if !case.vm.own_binary => {
                return nonsense(format!("step {number}: only with vm.own_binary = true"));
            }
            Step::Inject(_) if !matches!(case.steps.get(index + 1), Some(Step::Migrate(_))) => {
                return nonsense(format!("step {number}: inject must be followed by migrate"));
            }
            Step::Migrate(migrate) => {
                if migrate.command == CommandKind::ReplacesState && !saved {
                    return nonsense(format!(
                        "step {number}: there is no state of an earlier update to put there"
                    ));
                }
                saved |= migrate.expect == Expect::Completed && migrate.channel == Channel::File;
                if migrate.repeat == 0 {
                    return nonsense(format!("step {number}: repeat is 0"));
                }
                if let Expect::Failed(failure) = &migrate.expect
                    && failure.errno.or(migrate.command.errno()).is_none()
                    && failure.text.is_empty()
                {
                    return nonsense(format!(
                        "step {number}: say by which errno or text the update fails"
                    ));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const GOOD: &str = r#"
summary = "a running guest"
vm = { guest = "pattern", cpus = "${cpus}", pages = "${pages}", memory = "128M", own_binary = true, seccomp = "no-execve", memory_limit = "+8M" }
steps = [
  "boot",
  { wait = { sweeps = 1 } },
  { migrate = { command = "wrapper", repeat = 10 } },
  { migrate = { command = "enoent", expect = { failed = {} } } },
  { migrate = { channel = "tcp", expect = { refused = "tcp" } } },
  { bring = "stopped" },
  { limit = { nofile = "+3" } },
  { migrate = { command = "elf-32", expect = "kept" } },
  { limit = "restore" },
  { binary = "deleted" },
  { migrate = { command = "replaces-state", expect = { failed = { text = "state" } } } },
  { race = ["migrate", "reset"] },
  { kill-in-update = { signal = "SIGTERM" } },
  { interrupt = { point = "save", with = "migrate-cancel" } },
  { signal = { point = "exec", signal = "SIGHUP" } },
]
[matrix]
cpus = [1, 2]
pages = ["4k", "thp"]
"#;

    #[test]
    fn a_matrix_expands_to_named_cases() {
        let cases = parse("update/running.toml", "update/running", GOOD).unwrap();
        let names: Vec<&str> = cases.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "update/running[cpus=1,pages=4k]",
                "update/running[cpus=1,pages=thp]",
                "update/running[cpus=2,pages=4k]",
                "update/running[cpus=2,pages=thp]",
            ]
        );
        assert_eq!(cases[3].vm.cpus, 2);
        assert_ne!(cases[0].seed, cases[1].seed);
    }

    #[test]
    fn an_expanded_case_reads_back() {
        for case in parse("update/running.toml", "update/running", GOOD).unwrap() {
            let text = toml::to_string(&case).unwrap();
            assert_eq!(parse_case("case.toml", &text).unwrap(), case, "{text}");
        }
    }

    #[rstest]
    #[case::unknown_key("summary = \"\"\nvm = { cpu = 2 }\nsteps = [\"boot\"]\n")]
    #[case::unknown_step("summary = \"\"\nsteps = [\n  \"boot\",\n  \"stopp\",\n]\n")]
    #[case::unknown_option("summary = \"\"\nsteps = [\"boot\", { migrate = { repeats = 2 } }]\n")]
    #[case::unknown_command(
        "summary = \"\"\nsteps = [\"boot\", { migrate = { command = \"enent\" } }]\n"
    )]
    #[case::far_from_all("summary = \"\"\nsteps = [\"boot\"]\nxyzzy = 1\n")]
    #[case::wrong_type("summary = \"\"\nvm = { cpus = \"two\" }\nsteps = [\"boot\"]\n")]
    #[case::bad_size("summary = \"\"\nvm = { memory = \"64X\" }\nsteps = [\"boot\"]\n")]
    #[case::no_toml("summary = \n")]
    #[case::missing_key("summary = \"\"\n")]
    #[case::not_in_matrix("summary = \"\"\nvm = { cpus = \"${cpus}\" }\nsteps = [\"boot\"]\n")]
    #[case::unused_in_matrix("summary = \"\"\nsteps = [\"boot\"]\n[matrix]\ncpus = [1]\n")]
    #[case::empty_matrix("summary = \"${x}\"\nsteps = [\"boot\"]\n[matrix]\nx = []\n")]
    #[case::no_boot("summary = \"\"\nsteps = [\"stop\"]\n")]
    #[case::unknown_guest("summary = \"\"\nvm = { guest = \"linux\" }\nsteps = [\"boot\"]\n")]
    #[case::after_the_end("summary = \"\"\nsteps = [\"boot\", \"quit\", \"cont\"]\n")]
    #[case::any_failure(
        "summary = \"\"\nsteps = [\"boot\", { migrate = { expect = { failed = {} } } }]\n"
    )]
    #[case::unknown_limit("summary = \"\"\nsteps = [\"boot\", { limit = { nofiles = \"3\" } }]\n")]
    #[case::bad_limit("summary = \"\"\nsteps = [\"boot\", { limit = { as = \"3X\" } }]\n")]
    #[case::limit_above_nothing(
        "summary = \"\"\nsteps = [\"boot\", { limit = { nproc = \"+3\" } }]\n"
    )]
    #[case::nothing_to_restore("summary = \"\"\nsteps = [\"boot\", { limit = \"restore\" }]\n")]
    #[case::no_binary_of_its_own("summary = \"\"\nsteps = [\"boot\", { binary = \"deleted\" }]\n")]
    #[case::unknown_change(
        "summary = \"\"\nvm = { own_binary = true }\nsteps = [\"boot\", { binary = \"delete\" }]\n"
    )]
    #[case::unknown_filter("summary = \"\"\nvm = { seccomp = \"no-exec\" }\nsteps = [\"boot\"]\n")]
    #[case::no_earlier_state(
        "summary = \"\"\nsteps = [\"boot\", { migrate = { command = \"replaces-state\", expect = \"kept\" } }]\n"
    )]
    #[case::unknown_signal(
        "summary = \"\"\nsteps = [\"boot\", { kill-in-update = { signal = \"SIGUSR1\" } }]\n"
    )]
    #[case::unknown_interruption(
        "summary = \"\"\nsteps = [\"boot\", { interrupt = { point = \"save\", with = \"cancel\" } }]\n"
    )]
    #[case::after_an_interrupting_quit(
        "summary = \"\"\nsteps = [\"boot\", { interrupts = \"save\" }, \"cont\"]\n"
    )]
    #[case::after_a_signal(
        "summary = \"\"\nsteps = [\"boot\", { signal = { point = \"save\", signal = \"SIGINT\" } }, \"cont\"]\n"
    )]
    fn mistakes_are_told(#[case] text: &str) {
        let error = parse("theme/scenario.toml", "theme/scenario", text).unwrap_err();
        let name =
            std::thread::current().name().unwrap_or("").rsplit("::").next().unwrap().to_owned();
        insta::assert_snapshot!(name, error);
    }
}
