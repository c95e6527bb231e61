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
    let of_mode = match update.mode.moves() {
        false => exec(update),
        true => [moves(vm, update), new_vmm(update)].concat(),
    };
    let place = |(key, mistake)| (vec![Part::Only, Part::Key(key)], mistake);
    of_mode.into_iter().map(place).collect()
}

type Wrong = Vec<(&'static str, Mistake)>;

fn exec(update: &Migrate) -> Wrong {
    let mut wrong = Wrong::new();
    if !update.new_vmm.is_default() {
        let mistake = Mistake::new("with mode cpr-exec the new VMM is the `command`");
        wrong.push(("new-vmm", mistake.label("requires another `mode`")));
    }
    if update.new_vmm_fault.is_some() {
        let mistake = Mistake::new("with mode cpr-exec, the step `inject` injects a fault");
        wrong.push(("new-vmm-fault", mistake.label("requires another `mode`")));
    }
    if update.max_bandwidth.is_some() {
        let mistake = Mistake::new("with mode cpr-exec no RAM is copied");
        wrong.push(("max-bandwidth", mistake.label("requires `mode = \"normal\"`")));
    }
    if update.expect == Expect::Cancelled {
        let mistake = Mistake::new("an update with mode cpr-exec cannot be cancelled");
        wrong.push(("expect", mistake.label("requires another `mode`")));
    }
    wrong
}

/// What does not go with a mode in which the VM moves to another process.
fn moves(vm: &Vm, update: &Migrate) -> Wrong {
    let mut wrong = Wrong::new();
    let mode = update.mode.name();
    let mut add = |key, message: &str, label: &str| {
        wrong.push((key, Mistake::new(message).label(label)));
    };
    if update.command != CommandKind::Good {
        let message = format!("with mode {mode} nothing is executed");
        add("command", &message, "use `new-vmm` for another new VMM");
    }
    if update.mode == Mode::CprTransfer && update.channel != Channel::File {
        let message = "with mode cpr-transfer the channels are two sockets";
        add("channel", message, "remove it, or use another mode");
    }
    if update.mode != Mode::Normal && update.max_bandwidth.is_some() {
        let message = format!("with mode {mode} no RAM is copied");
        add("max-bandwidth", &message, "requires `mode = \"normal\"`");
    }
    if update.rehearsal.is_some() {
        let message = format!("with mode {mode} no command is rehearsed");
        add("rehearsal", &message, "remove it, or use mode cpr-exec");
    }
    if update.max_downtime_ms.is_some() {
        let message = format!("with mode {mode} the time that the guest is stopped has no limit");
        add("max-downtime-ms", &message, "remove it, or use mode cpr-exec");
    }
    if update.deadline_ms.is_some() {
        let message = "the deadline is a parameter of mode cpr-exec";
        add("deadline-ms", message, "remove it, or use mode cpr-exec");
    }
    if matches!(update.expect, Expect::Survives | Expect::Ended) {
        let message = format!("with mode {mode} this end of an update is not supported");
        add("expect", &message, "use mode cpr-exec");
    }
    let saves = update.mode == Mode::CprReboot && update.expect == Expect::Completed;
    if saves && !vm.memory_file {
        let message = "mode cpr-reboot keeps only RAM that is in a file";
        add("mode", message, "requires `vm.memory-file = true`");
    }
    if update.mode == Mode::CprReboot && update.expect == Expect::Cancelled {
        add("expect", "an update with mode cpr-reboot cannot be cancelled", "use another mode");
        return wrong;
    }
    if vm.memory_limit.is_some() {
        let message = "the new VMM in another process is not in the memory cgroup of the old one";
        add("mode", message, "remove vm.memory-limit, or use mode cpr-exec");
    }
    if vm.stalled.is_some() {
        let message = "the new VMM in another process has no stalled log";
        add("mode", message, "remove vm.stalled, or use mode cpr-exec");
    }
    wrong
}

/// What does not go with the new VMM in another process.
fn new_vmm(update: &Migrate) -> Wrong {
    let mut wrong = Wrong::new();
    let mut add = |key, message: &str, label: &str| {
        wrong.push((key, Mistake::new(message).label(label)));
    };
    let cancelled = update.expect == Expect::Cancelled;
    if update.mode != Mode::CprReboot
        && cancelled != (update.new_vmm == NewVmm::Held || update.is_cancelled_in_a_copy())
    {
        let message =
            "an update is cancelled if, and only if, its new VMM is `held` or it copies RAM";
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
    if !update.has_later_vmm() {
        return wrong;
    }
    use NewVmm::{Good, OtherCpus, OtherMemory, UnknownOption};
    if !matches!(update.new_vmm, Good | OtherMemory | OtherCpus | UnknownOption) {
        let message = "the new VMM is started after the old one has ended, and waits for nothing";
        add("new-vmm", message, "use mode cpr-transfer, or mode normal with a socket");
    }
    let fails = !update.new_vmm.is_default() || update.new_vmm_fault.is_some();
    if fails && update.expect != Expect::Completed {
        let message = "the update is over before the new VMM, which fails, is started";
        add("expect", message, "remove it; a good new VMM follows the one that fails");
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
    #[case::reboot_cancelled(
        "mode = 'cpr-reboot', expect = 'cancelled'",
        Some("cpr-reboot cannot be cancelled")
    )]
    #[case::point(
        "mode = 'normal', new-vmm-fault = { point = 'nonsense', action = 'panic' }",
        Some("unknown fail point `nonsense`")
    )]
    #[case::held("mode = 'cpr-transfer', new-vmm = 'held', expect = 'cancelled'", None)]
    #[case::unknown("mode = 'cpr-warm'", Some("unknown value `cpr-warm`"))]
    #[case::reboot("mode = 'cpr-reboot', new-vmm = 'other-cpus'", Some("requires `vm.memory-file"))]
    #[case::snapshot("mode = 'normal', times = 2", None)]
    #[case::copy("mode = 'normal', channel = 'tcp', new-vmm = 'held', expect = 'cancelled'", None)]
    #[case::copy_executes("mode = 'normal', command = 'true'", Some("mode normal nothing is"))]
    #[case::nothing_waits(
        "mode = 'cpr-reboot', new-vmm = 'killed-listening'",
        Some("waits for nothing")
    )]
    #[case::too_late(
        "mode = 'normal', new-vmm = 'other-cpus', expect = { not-completed = '' }",
        Some("is over before the new VMM")
    )]
    #[case::command("mode = 'cpr-transfer', command = 'true'", Some("use `new-vmm`"))]
    #[case::channel("mode = 'cpr-transfer', channel = 'tcp'", Some("the channels are two sockets"))]
    #[case::rehearsal("mode = 'cpr-transfer', rehearsal = false", Some("no command is rehearsed"))]
    #[case::deadline(
        "mode = 'cpr-transfer', deadline-ms = 9",
        Some("a parameter of mode cpr-exec")
    )]
    #[case::ended("mode = 'cpr-transfer', expect = 'ended'", Some("is not supported"))]
    #[case::survives("mode = 'cpr-transfer', expect = 'survives'", Some("is not supported"))]
    #[case::new_vmm("new-vmm = 'none'", Some("requires another `mode`"))]
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
    #[case::exec_cancelled("expect = 'cancelled'", Some("cpr-exec cannot be cancelled"))]
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
    #[case::limited("", "{ limit = { nofile = '+3' } }", "put `{ limit = \"restore\" }` before it")]
    #[case::connected(
        "serial = 'unix'",
        "{ serial = 'connect' }",
        "put `{ serial = \"leave\" }` before it"
    )]
    #[case::private_file("memory-file = true, share = false", "'stop'", "requires `share = true`")]
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
