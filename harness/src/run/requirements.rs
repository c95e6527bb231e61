//! What a case requires of the host. A case whose requirements are not met is ignored, with the
//! reason.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::Path;

use crate::backend::{Backend, Feature};
use crate::kernels::Kernels;
use crate::lab::restart;
use crate::observe::host::{self, KernelMode};
use crate::process::cgroup;
use crate::run::linux;
use crate::run::update::{command, mounts};
use crate::run::verdict::HOST_LACKS;
use crate::scenario::interrupt::REHEARSING;
use crate::scenario::{
    Case, Channel, CommandKind, Expect, HostRestart, Inject, Keeper, KillOutcome, Migrate, Mode,
    NewVmm, Pages, Ring, Seccomp, Step,
};

/// Returns whether a case that cannot run is an error, as in CI: `CPR_REQUIRE_ALL` is set and not
/// empty.
pub fn all_required() -> bool {
    is_on(std::env::var_os("CPR_REQUIRE_ALL").as_deref())
}

fn is_on(variable: Option<&OsStr>) -> bool {
    variable.is_some_and(|value| !value.is_empty())
}

/// Returns why `case` cannot run here, if so.
pub fn unmet(case: &Case, backend: &dyn Backend) -> Option<String> {
    if backend.uses_kvm()
        && let Some(why) = no_kvm()
    {
        return Some(why);
    }
    if case.restarts_host()
        && let Some(why) = no_host_restart(case, backend)
    {
        return Some(why);
    }
    if let Some(cases) = in_kernel_mode(case)
        && backend.uses_kvm()
        && let Some(why) = no_kernel_mode(host::this().kernel_mode, cases)
    {
        return Some(why);
    }
    if let Some(why) = needs(case).into_iter().find_map(|feature| backend.lacks(feature)) {
        return Some(why);
    }
    if let Some(why) = faults(case).iter().find_map(|fault| backend.unsupported_fault(fault)) {
        return Some(why);
    }
    if case.vm.is_linux()
        && let Err(error) = linux::kernel(&case.vm)
    {
        return Some(error.to_string());
    }
    match case.vm.pages {
        Pages::Small => {}
        Pages::Transparent => {
            if let Some(why) = no_shared_huge_pages(backend) {
                return Some(why);
            }
        }
        Pages::Reserved if reserved_bytes() < case.vm.memory.0 => {
            return Some(format!("less than {} of reserved 2 MiB pages here", case.vm.memory));
        }
        Pages::Reserved => {}
    }
    if case.steps.iter().any(is_mounting)
        && let Some(why) = mounts::unmet()
    {
        return Some(why);
    }
    let command = |step: &Step| match step {
        Step::Migrate(migrate) => command::unmet(migrate.command),
        _ => None,
    };
    let unmet = case.steps.iter().find_map(command);
    unmet.or_else(|| case.vm.memory_limit.and_then(|_| cgroup::unmet()))
}

/// Returns why the host cannot be restarted in this case, if so.
fn no_host_restart(case: &Case, backend: &dyn Backend) -> Option<String> {
    if !restart::is_possible() {
        let lab = "`cpr-harness lab --kept-memory 512M -- run --exact NAME`";
        return Some(format!("{HOST_LACKS}a restart of the host (a lab has it: {lab})"));
    }
    if restart::kept().is_none() {
        let why = "restarts the host, so it must be the only case selected, and run once";
        return Some(format!("{why}: use --exact"));
    }
    if backend.next(0).is_some() {
        return Some("restarts the host with one build only: omit --update-to".to_owned());
    }
    let series = case.steps.iter().filter_map(|step| match step {
        Step::RestartHost(HostRestart { kernel }) => kernel.as_deref(),
        _ => None,
    });
    let kernels = match Kernels::find() {
        Ok(kernels) => kernels,
        Err(why) => return Some(why.to_string()),
    };
    let missing = series.filter_map(|series| kernels.of_series(series).err()).next();
    missing.map(|why| why.to_string())
}

/// Returns why KVM cannot be used here, if so.
pub fn no_kvm() -> Option<String> {
    let kvm = Path::new("/dev/kvm");
    let opened = File::options().read(true).write(true).open(kvm);
    opened.err().map(|e| format!("no KVM here ({}: {e})", kvm.display()))
}

/// Returns the filter that selects the cases like this one, if its guest runs in kernel mode.
fn in_kernel_mode(case: &Case) -> Option<&'static str> {
    match case.vm.ring {
        _ if case.vm.is_linux() => Some("linux/"),
        Ring::Kernel => Some("ring=0"),
        _ => None,
    }
}

/// Returns why a guest cannot run in kernel mode, if so: an emulator in the kernel would run it, and
/// not all of it.
fn no_kernel_mode(kernel_mode: KernelMode, cases: &str) -> Option<String> {
    (kernel_mode == KernelMode::Emulated).then(|| {
        format!(
            "{HOST_LACKS}the guest's kernel mode on the CPU (a lab has it: `cpr-harness lab run --filter {cases}`)"
        )
    })
}

/// Returns the features that a case needs of its VMM.
fn needs(case: &Case) -> Vec<Feature> {
    let mut needs = Vec::new();
    if case.vm.is_linux() {
        needs.push(Feature::Linux);
    }
    if case.vm.own_binary {
        needs.push(Feature::OwnBinary);
    }
    // A VMM without keepers satisfies a case that wants none.
    if matches!(case.vm.keeper, Some(Keeper::On | Keeper::Update)) {
        needs.push(Feature::Keeper);
    }
    if case.vm.paused {
        needs.push(Feature::Prelaunch);
    }
    if case.vm.stalled.is_some() {
        needs.push(Feature::Log);
    }
    if !case.vm.qemu.is_empty() {
        needs.push(Feature::QemuOptions);
    }
    if case.vm.seccomp == Some(Seccomp::NoExecve) {
        needs.push(Feature::Execveat);
    }
    for step in &case.steps {
        needs.extend(mode_of(step).map(Feature::Mode));
        match step {
            Step::Inject(_) | Step::Interrupt(_) | Step::Irqfd | Step::InitSipi(_) => {
                needs.push(Feature::FailPoints);
            }
            Step::KillInUpdate(kill) if kill.at.is_some() => {
                needs.extend([Feature::FailPoints, Feature::Keeper]);
            }
            // Only a VMM with rehearsals can run programs that only rehearse, and can hold signals
            // back over exec.
            Step::KillInUpdate(kill) if kill.expect == KillOutcome::Revived => {
                needs.push(Feature::Keeper);
                needs.extend((kill.command != CommandKind::Good).then_some(Feature::Rehearsal));
            }
            Step::KillInUpdate(kill) if kill.command != CommandKind::Good || kill.signal.asks() => {
                needs.push(Feature::Rehearsal);
            }
            Step::Serial(_) => needs.push(Feature::SerialClient),
            Step::KillVmm(kill) if kill.expect == KillOutcome::Revived => {
                needs.push(Feature::Keeper)
            }
            Step::Migrate(migrate) => needs.extend(needs_of_update(migrate)),
            _ => {}
        }
    }
    needs
}

/// Returns the mode of the updates in a step other than `migrate`, if it has any.
fn mode_of(step: &Step) -> Option<Mode> {
    match step {
        Step::Measure(mode) => Some(*mode),
        Step::RestartHost(_) => Some(Mode::CprReboot),
        Step::EachMarker(_) | Step::Soak(_) | Step::KillInUpdate(_) | Step::Race(_) => {
            Some(Mode::CprExec)
        }
        _ => None,
    }
}

/// Returns the faults that a case injects into updates.
fn faults(case: &Case) -> Vec<Inject> {
    let fault = |step: &Step| match step {
        Step::Inject(inject) => Some(inject.clone()),
        Step::Interrupt(interrupt) if interrupt.point != REHEARSING => {
            Some(Inject { point: interrupt.point.clone(), action: "hold=/dev/null".to_owned() })
        }
        Step::KillInUpdate(kill) => {
            let at = kill.at.clone();
            at.map(|point| Inject { point, action: "hold=/dev/null".to_owned() })
        }
        Step::Migrate(migrate) => migrate.new_vmm_fault.clone(),
        _ => None,
    };
    case.steps.iter().filter_map(fault).collect()
}

fn needs_of_update(migrate: &Migrate) -> impl Iterator<Item = Feature> {
    let of_command = match migrate.command {
        CommandKind::OlderState | CommandKind::NewerState => Some(Feature::FailPoints),
        CommandKind::EnvNotMemfd => Some(Feature::OpenFiles),
        CommandKind::Deferred => Some(Feature::Deferred),
        _ => None,
    };
    let of_fault = migrate.new_vmm_fault.as_ref().map(|_| Feature::FailPoints);
    let rehearses = (migrate.rehearsal == Some(true)).then_some(Feature::Rehearsal);
    let deadline = migrate.deadline_ms.map(|_| Feature::Deadline);
    let downtime = migrate.max_downtime_ms.map(|_| Feature::MaxDowntime);
    let revived = matches!(migrate.expect, Expect::Revived | Expect::Survives);
    let keeper = revived.then_some(Feature::Keeper);
    let mode = Some(Feature::Mode(migrate.mode));
    let saves = migrate.mode == Mode::Normal && migrate.has_later_vmm();
    let saves = saves.then_some(Feature::Snapshot);
    let machine = matches!(migrate.new_vmm, NewVmm::OtherMemory | NewVmm::OtherCpus);
    let machine = machine.then_some(Feature::OwnMachine);
    let cancels = migrate.expect == Expect::Cancelled || migrate.new_vmm == NewVmm::Held;
    let cancels = cancels.then_some(Feature::Cancel);
    [of_command, of_fault, rehearses, deadline, downtime, keeper, mode, saves, machine, cancels]
        .into_iter()
        .flatten()
}

fn is_mounting(step: &Step) -> bool {
    let Step::Migrate(migrate) = step else { return false };
    matches!(migrate.channel, Channel::Full | Channel::ReadOnly)
        || matches!(migrate.command, CommandKind::NoexecMount | CommandKind::WithoutKvm)
}

/// Returns why shared memory has no transparent huge pages, if so.
pub fn no_shared_huge_pages(backend: &dyn Backend) -> Option<String> {
    let none = "no transparent huge pages for shared memory here (needs root, or shmem_enabled)";
    let folder = Path::new("/sys/kernel/mm/transparent_hugepage");
    let Ok(shared) = fs::read_to_string(folder.join("shmem_enabled")) else {
        return Some(none.into());
    };
    if ["[always]", "[advise]", "[within_size]", "[force]"].iter().any(|v| shared.contains(v)) {
        return None;
    }
    // With the right to mount, a tmpfs with huge=always works whatever the default is.
    match mounts::unmet().is_none() && !shared.contains("[deny]") {
        true => backend.lacks(Feature::HugePagesByMount),
        false => Some(none.into()),
    }
}

/// Returns how many bytes of reserved 2 MiB pages are free on the host.
pub fn reserved_bytes() -> u64 {
    fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok())
        .map_or(0, |pages| pages << 21)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::emulated(KernelMode::Emulated, true)]
    #[case::on_the_cpu(KernelMode::OnTheCpu, false)]
    #[case::not_known(KernelMode::Unknown, false)]
    fn ring_0_needs_the_cpu(#[case] kernel_mode: KernelMode, #[case] lacks: bool) {
        let why = no_kernel_mode(kernel_mode, "ring=0");
        assert_eq!(why.as_deref().map(|why| why.starts_with(HOST_LACKS)), lacks.then_some(true));
    }

    #[rstest]
    #[case(None, false)]
    #[case(Some(""), false)]
    #[case(Some("1"), true)]
    fn empty_variable_counts_as_unset(#[case] variable: Option<&str>, #[case] on: bool) {
        assert_eq!(is_on(variable.map(OsStr::new)), on);
    }
}
