//! Wrong scenarios, and what their author sees.

use rstest::rstest;

use super::Case;
use super::ScenarioError;
use super::parse::parse;
use super::set::EMBEDDED;

/// Words of serde and names of Rust's types, which say nothing to the author of a scenario.
const JARGON: [&str; 9] = [
    "invalid type",
    "invalid value",
    "variant",
    "field",
    "data did not match",
    "struct",
    "u32",
    "i64",
    "newtype",
];

fn read(text: &str) -> Result<Vec<Case>, ScenarioError> {
    parse("theme/wrong.toml", "theme/wrong", text)
}

#[rstest]
#[case::update_without_options(
    r#"summary = "…"
steps = ["boot", "migrate"]
"#
)]
#[case::wait_for_nothing(
    r#"summary = "…"
steps = ["boot", "wait"]
"#
)]
#[case::point_missing(
    r#"summary = "…"
vm = { keeper = "on" }
steps = ["boot", "kill-at"]
"#
)]
#[case::race_of_nothing(
    r#"summary = "…"
steps = ["boot", "race"]
"#
)]
#[case::repeat_of_nothing(
    r#"summary = "…"
steps = ["boot", "repeat"]
"#
)]
#[case::options_beside_the_step(
    r#"summary = "…"
steps = ["boot", { migrate = {}, expect = "any" }]
"#
)]
#[case::value_of_a_plain_step(
    r#"summary = "…"
steps = ["boot", { stop = 1 }]
"#
)]
#[case::empty_step(
    r#"summary = "…"
steps = ["boot", {}]
"#
)]
#[case::step_is_a_number(
    r#"summary = "…"
steps = ["boot", 3]
"#
)]
#[case::steps_are_text(
    r#"summary = "…"
steps = "boot"
"#
)]
#[case::text_for_a_flag(
    r#"summary = "…"
vm = { paused = "yes" }
steps = ["boot"]
"#
)]
#[case::flag_for_text(
    r#"summary = "…"
vm = { cmdline = true, guest = 1 }
steps = ["boot"]
"#
)]
#[case::negative_and_too_large(
    r#"summary = "…"
vm = { cpus = -1 }
steps = ["boot", { init-sipi = { cpu = 300, page = 9 } }, { go = 5000000000 }]
"#
)]
#[case::missing_option(
    r#"summary = "…"
steps = ["boot", { inject = { point = "save" } }]
"#
)]
#[case::failed_without_value(
    r#"summary = "…"
steps = ["boot", { migrate = { expect = "failed" } }]
"#
)]
#[case::completed_with_value(
    r#"summary = "…"
steps = ["boot", { migrate = { expect = { completed = { text = "x" } } } }]
"#
)]
#[case::table_header(
    r#"summary = "…"
steps = ["boot"]
[vm]
cpu = 2
"#
)]
#[case::unclosed_table(
    r#"summary = "…"
vm = { cpus = 2
steps = ["boot"]
"#
)]
#[case::key_twice(
    r#"summary = "…"
steps = ["boot"]
seed = 1
seed = 2
"#
)]
#[case::after_other_letters(
    r#"summary = "…"
vm = { cmdline = "äöü", cpu = 2 }
steps = ["boot"]
"#
)]
#[case::many_mistakes(
    r#"summary = "…"
vm = { guest = 7, cpu = 2, memory = "64X" }
steps = [
  "bot",
  { migrate = { command = "enent", times = -1 } },
  { wait = { sweep = 1 } },
]
sed = 1
"#
)]
#[case::many_that_make_no_sense(
    r#"summary = "…"
vm = { guest = "patterns", cpus = 9, memory = "1M" }
time-limit-ms = 0
steps = [
  "stop",
  { migrate = { times = 0, deadline-ms = 0 } },
  { limit = { nproc = "+3" } },
  { binary = "deleted" },
  "boot",
  "quit",
  "cont",
]
"#
)]
#[case::value_twice(
    r#"summary = "…"
vm = { cpus = "${cpus}" }
steps = ["boot"]
[matrix]
cpus = [1, 2, "2", 1]
"#
)]
#[case::variable_misspelt(
    r#"summary = "…"
vm = { cpus = "${cpu}" }
steps = ["boot", "stopp"]
[matrix]
cpus = [1, 2]
"#
)]
#[case::variable_not_closed(
    r#"summary = "…"
vm = { cmdline = "test=${test" }
steps = ["boot"]
[matrix]
test = ["a"]
"#
)]
#[case::variable_only_in_a_comment(
    r#"summary = "…"
# not here: ${cpus}
steps = ["boot"]
[matrix]
cpus = [1]
"#
)]
#[case::matrix_of_lists(
    r#"summary = "…"
vm = { cpus = "${cpus}" }
steps = ["boot"]
[matrix]
cpus = [1, [2]]
"#
)]
#[case::matrix_is_a_list(
    r#"summary = "…"
steps = ["boot"]
matrix = [1]
"#
)]
#[case::unknown_fail_points(
    r#"summary = "…"
vm = { keeper = "off" }
steps = [
  "boot",
  { inject = { point = "saves", action = "panic" } },
  { migrate = {} },
  { faults = "channels" },
  { interrupt = { point = "rehearse", with = "stop" } },
  { kill-in-update = { at = "copies" } },
  { signal = { point = "execs", signal = "SIGTERM" } },
]
"#
)]
#[case::unknown_action(
    r#"summary = "…"
steps = ["boot", { inject = { point = "save", action = "explode" } }, { migrate = {} }]
"#
)]
#[case::no_sweeps(
    r#"summary = "…"
vm = { guest = "${guest}" }
steps = ["boot", { wait = { sweeps = 1 } }]
[matrix]
guest = ["pattern", "heartbeat", "timer"]
"#
)]
#[case::no_such_marker(
    r#"summary = "…"
vm = { cmdline = "markers=2" }
steps = ["boot", { wait = { marker = 3 } }, { go = 0 }]
"#
)]
#[case::no_client(
    r#"summary = "…"
steps = ["boot", { serial = "connect" }, { serial = "leave" }, { wait = { serial-lines = 1 } }]
"#
)]
#[case::no_such_vcpu(
    r#"summary = "…"
vm = { cpus = "${cpus}" }
steps = ["boot", { init-sipi = { cpu = 1, page = 9 } }]
[matrix]
cpus = [1, 2]
"#
)]
#[case::no_rounds(
    r#"summary = "…"
steps = ["boot", { repeat = { times = 0, steps = ["stop"] } }]
"#
)]
#[case::in_a_round(r#"summary = "…"
steps = ["boot", { repeat = { times = 2, steps = [{ migrate = {} }, { migrate = { times = 0 } }] } }]
"#)]
#[case::guest_resets_by_itself(
    r#"summary = "…"
steps = ["boot", { race = ["migrate", "guest-reset"] }]
"#
)]
#[case::key_twice_with_a_placeholder(
    r#"summary = "…"
vm = { "${k}" = 3, cpus = 1 }
steps = ["boot"]

[matrix]
k = ["cpus"]
"#
)]
#[case::placeholder_in_a_value(
    r#"summary = "…"
vm = { cmdline = "${a}" }
steps = ["boot"]

[matrix]
a = ["${b}", "z"]
"#
)]
#[case::too_many_combinations(
    r#"summary = "…"
vm = { cmdline = "${a}${b}${c}" }
steps = ["boot"]

[matrix]
a = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21]
b = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21]
c = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21]
"#
)]
#[case::rounds_of_rounds(
    r#"summary = "…"
steps = ["boot", { repeat = { times = 1000, steps = [{ repeat = { times = 1000, steps = ["stop"] } }] } }]
"#
)]
#[case::nothing_to_repeat(
    r#"summary = "…"
steps = ["boot", { repeat = { times = 3, steps = [] } }]
"#
)]
#[case::far_below_zero(
    r#"summary = "…"
steps = ["boot", { wait = { heartbeats = -99999999999999999999999999999999999999999999999999 } }]
"#
)]
#[case::soak_for_ages(
    r#"summary = "…"
steps = ["boot", { soak = { times = 1, within-ms = 9223372036854775807 } }]
"#
)]
#[case::restart_without_ram(
    r#"summary = "…"
steps = ["boot", { restart-host = { kernel = "new" } }]
"#
)]
#[case::client_across_a_restart(
    r#"summary = "…"
vm = { memory-file = true, serial = "unix" }
steps = ["boot", { serial = "connect" }, { restart-host = {} }]
"#
)]
fn a_wrong_scenario_is_shown_with_what_is_accepted(#[case] text: &str) {
    let shown = read(text).unwrap_err().to_string();
    for word in JARGON {
        assert!(!shown.contains(word), "{word}: {shown}");
    }
    let name = std::thread::current().name().unwrap_or("").rsplit("::").next().unwrap().to_owned();
    let name = name.split_once('_').unwrap().1.split_once('_').unwrap().1.to_owned();
    insta::assert_snapshot!(name, shown);
}

/// Whether `shown` names a line of the file, and shows one unless the file is empty.
fn names_a_line(shown: &str) -> bool {
    let mut lines = shown.lines().filter_map(|line| line.trim_start().strip_prefix("--> "));
    lines.all(|place| {
        let mut numbers = place.rsplit(':');
        let number = |text: Option<&str>| text.and_then(|text| text.parse::<usize>().ok());
        let (column, line) = (number(numbers.next()), number(numbers.next()));
        numbers.next() == Some("theme/wrong.toml") && column > Some(0) && line > Some(0)
    }) && shown.contains("--> ")
}

#[track_caller]
fn loads_or_names_a_line(text: &str) {
    if let Err(error) = read(text) {
        let shown = error.to_string();
        assert!(names_a_line(&shown), "{shown}\n\nof:\n{text}");
        assert!(JARGON.iter().all(|word| !shown.contains(word)), "{shown}\n\nof:\n{text}");
    }
}

/// Scenarios of every kind: with and without a matrix, with long lists and nested steps.
const REAL: [&str; 10] = [
    "update/running",
    "update/inside-a-page-write",
    "failed/exec",
    "fault/rehearsed",
    "refused/other-machine",
    "keeper/faults",
    "race/guest-resets",
    "endurance/soak",
    "inside/modes",
    "channel/full",
];

fn real() -> impl Iterator<Item = &'static str> {
    REAL.iter().map(|name| {
        let file = EMBEDDED.iter().find(|(known, _)| known == name);
        file.unwrap_or_else(|| panic!("there is no {name}")).1
    })
}

#[test]
fn every_prefix_of_a_scenario_loads_or_names_a_line() {
    for text in real() {
        for (end, _) in text.char_indices() {
            loads_or_names_a_line(&text[..end]);
        }
    }
}

#[test]
fn every_scenario_without_a_line_or_a_word_loads_or_names_a_line() {
    for text in real() {
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        for without in 0..lines.len() {
            let left = lines.iter().enumerate().filter(|(index, _)| *index != without);
            loads_or_names_a_line(&left.map(|(_, line)| *line).collect::<String>());
        }
        let words: Vec<&str> = text.split_inclusive(' ').collect();
        for without in 0..words.len() {
            let left = words.iter().enumerate().filter(|(index, _)| *index != without);
            loads_or_names_a_line(&left.map(|(_, word)| *word).collect::<String>());
        }
    }
}
