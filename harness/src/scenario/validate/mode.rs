//! What does not go with the mode of an update.

use crate::scenario::command_kind::CommandKind;
use crate::scenario::mistake::Mistake;
use crate::scenario::mode::{Mode, NewVmm};
use crate::scenario::tree::Part;
use crate::scenario::update::{Channel, Expect, Migrate};
use crate::scenario::vm::Vm;

/// Returns what is wrong with the mode of `update` on `vm`, each mistake with the path below the
/// step.
pub fn check(vm: &Vm, update: &Migrate) -> Vec<(Vec<Part>, Mistake)> {
    let of_mode = match update.mode {
        Mode::CprExec => exec(update),
        Mode::CprTransfer => transfer(vm, update),
    };
    let place = |(key, mistake)| (vec![Part::Only, Part::Key(key)], mistake);
    of_mode.into_iter().map(place).collect()
}

type Wrong = Vec<(&'static str, Mistake)>;

fn exec(update: &Migrate) -> Wrong {
    let mut wrong = Wrong::new();
    if !update.new_vmm.is_default() {
        let mistake = Mistake::new("with mode cpr-exec the new VMM is the `command`");
        wrong.push(("new-vmm", mistake.label("requires `mode = \"cpr-transfer\"`")));
    }
    if update.new_vmm_fault.is_some() {
        let mistake = Mistake::new("with mode cpr-exec, the step `inject` injects a fault");
        wrong.push(("new-vmm-fault", mistake.label("requires `mode = \"cpr-transfer\"`")));
    }
    if update.expect == Expect::Cancelled {
        let mistake = Mistake::new("only an update to a new VMM that is `held` is cancelled");
        wrong.push(("expect", mistake.label("requires `mode = \"cpr-transfer\"`")));
    }
    wrong
}

fn transfer(vm: &Vm, update: &Migrate) -> Wrong {
    let mut wrong = Wrong::new();
    let mut add = |key, message: &str, label: &str| {
        wrong.push((key, Mistake::new(message).label(label)));
    };
    if update.command != CommandKind::Good {
        let message = "with mode cpr-transfer nothing is executed";
        add("command", message, "use `new-vmm` for another new VMM");
    }
    if update.channel != Channel::File {
        let message = "with mode cpr-transfer the channels are two sockets";
        add("channel", message, "remove it, or use mode cpr-exec");
    }
    if update.rehearsal.is_some() {
        let message = "with mode cpr-transfer no command is rehearsed";
        add("rehearsal", message, "remove it, or use mode cpr-exec");
    }
    if update.deadline_ms.is_some() {
        let message = "the deadline is a parameter of mode cpr-exec";
        add("deadline-ms", message, "remove it, or use mode cpr-exec");
    }
    if matches!(update.expect, Expect::Revived | Expect::Survives | Expect::Ended) {
        let message = "with mode cpr-transfer this end of an update is not supported";
        add("expect", message, "use mode cpr-exec");
    }
    if (update.expect == Expect::Cancelled) != (update.new_vmm == NewVmm::Held) {
        let message = "an update is cancelled if, and only if, its new VMM is `held`";
        let label = match update.new_vmm {
            NewVmm::Held => "write `expect = \"cancelled\"`",
            _ => "requires `new-vmm = \"held\"`",
        };
        add("expect", message, label);
    }
    if update.new_vmm_fault.is_some() && !update.new_vmm.is_default() {
        let message = "a new VMM with a fault is `good` otherwise";
        add("new-vmm", message, "remove it, or new-vmm-fault");
    }
    if vm.memory_limit.is_some() {
        let message = "the new VMM of a cpr-transfer is not in the memory cgroup of the old one";
        add("mode", message, "remove vm.memory-limit, or use mode cpr-exec");
    }
    if vm.stalled.is_some() {
        let message = "the new VMM of a cpr-transfer has no stalled log";
        add("mode", message, "remove vm.stalled, or use mode cpr-exec");
    }
    wrong
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use crate::scenario::parse;

    /// What is wrong with the scenario of these steps.
    fn wrong(vm: &str, steps: &str) -> Option<String> {
        let text = format!("summary = ''\nvm = {{ {vm} }}\nsteps = ['boot', {steps}]\n");
        parse::parse("file", "a/b", &text).err().map(|error| error.to_string())
    }

    #[rstest]
    #[case::plain("mode = 'cpr-transfer', times = 3", None)]
    #[case::named("mode = 'cpr-exec', command = 'wrapper'", None)]
    #[case::fails("mode = 'cpr-transfer', new-vmm = 'none', expect = { not-completed = '' }", None)]
    #[case::held("mode = 'cpr-transfer', new-vmm = 'held', expect = 'cancelled'", None)]
    #[case::unknown("mode = 'cpr-reboot'", Some("unknown value `cpr-reboot`"))]
    #[case::command("mode = 'cpr-transfer', command = 'true'", Some("use `new-vmm`"))]
    #[case::channel("mode = 'cpr-transfer', channel = 'tcp'", Some("the channels are two sockets"))]
    #[case::rehearsal("mode = 'cpr-transfer', rehearsal = false", Some("no command is rehearsed"))]
    #[case::deadline(
        "mode = 'cpr-transfer', deadline-ms = 9",
        Some("a parameter of mode cpr-exec")
    )]
    #[case::ended("mode = 'cpr-transfer', expect = 'ended'", Some("is not supported"))]
    #[case::survives("mode = 'cpr-transfer', expect = 'survives'", Some("is not supported"))]
    #[case::new_vmm("new-vmm = 'none'", Some("requires `mode = \"cpr-transfer\"`"))]
    #[case::fault(
        "mode = 'cpr-transfer', new-vmm-fault = { point = 'ram', action = 'sigkill' }, expect = { not-completed = '' }",
        None
    )]
    #[case::exec_fault(
        "new-vmm-fault = { point = 'ram', action = 'sigkill' }",
        Some("the step `inject`")
    )]
    #[case::fault_and_more(
        "mode = 'cpr-transfer', new-vmm = 'none', new-vmm-fault = { point = 'ram', action = 'sigkill' }",
        Some("remove it, or new-vmm-fault")
    )]
    #[case::exec_cancelled("expect = 'cancelled'", Some("only an update to a new VMM"))]
    #[case::held_only(
        "mode = 'cpr-transfer', new-vmm = 'held'",
        Some("write `expect = \"cancelled\"`")
    )]
    #[case::cancelled_only(
        "mode = 'cpr-transfer', expect = 'cancelled'",
        Some("requires `new-vmm = \"held\"`")
    )]
    fn keys_that_do_not_go_with_the_mode(#[case] update: &str, #[case] told: Option<&str>) {
        let found = wrong("", &format!("{{ migrate = {{ {update} }} }}"));
        match told {
            None => assert_eq!(found, None),
            Some(told) => assert!(found.as_ref().is_some_and(|f| f.contains(told)), "{found:?}"),
        }
    }

    #[rstest]
    #[case::injected(
        "",
        "{ inject = { point = 'save', action = 'panic' } }",
        "those of an update with mode cpr-exec"
    )]
    #[case::limited("", "{ limit = { nofile = '+3' } }", "put `{ limit = \"restore\" }` before it")]
    #[case::connected(
        "serial = 'unix'",
        "{ serial = 'connect' }",
        "put `{ serial = \"leave\" }` before it"
    )]
    #[case::in_a_cgroup("memory-limit = '+8M'", "'stop'", "remove vm.memory-limit")]
    #[case::stalled("stalled = 'log'", "'stop'", "remove vm.stalled")]
    fn steps_and_vms_that_do_not_go_with_a_new_process(
        #[case] vm: &str,
        #[case] before: &str,
        #[case] told: &str,
    ) {
        let found = wrong(vm, &format!("{before}, {{ migrate = {{ mode = 'cpr-transfer' }} }}"));
        assert!(found.as_ref().is_some_and(|found| found.contains(told)), "{found:?}");
    }

    #[test]
    fn a_matrix_can_vary_the_mode() {
        let text = "summary = ''\nsteps = ['boot', { migrate = { mode = '${mode}' } }]\n\
            [matrix]\nmode = ['cpr-exec', 'cpr-transfer']\n";
        let cases = parse::parse("file", "a/b", text).unwrap();
        let names: Vec<&str> = cases.iter().map(|case| case.name.as_str()).collect();
        assert_eq!(names, ["a/b[mode=cpr-exec]", "a/b[mode=cpr-transfer]"]);
    }
}
