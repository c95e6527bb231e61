//! What a case needs of the host; a case whose needs are not met is ignored, and says why.

use std::fs::{self, File};
use std::path::Path;

use super::cgroup;
use crate::backend::Backend;
use crate::scenario::{Case, Channel, CommandKind, Migrate, Pages, Step};

/// Why `case` cannot run here, if it cannot.
pub fn unmet(case: &Case, backend: &dyn Backend) -> Option<String> {
    let kvm = Path::new("/dev/kvm");
    if backend.uses_kvm()
        && let Err(e) = File::options().read(true).write(true).open(kvm)
    {
        return Some(format!("no KVM here ({}: {e})", kvm.display()));
    }
    match case.vm.pages {
        Pages::Small => {}
        Pages::Transparent if !shared_huge_pages() => {
            return Some(
                "no transparent huge pages for shared memory here (needs root, or shmem_enabled)"
                    .into(),
            );
        }
        Pages::Transparent => {}
        Pages::Reserved if reserved_bytes() < case.vm.memory.0 => {
            return Some(format!("no {} of reserved 2 MiB pages here", case.vm.memory));
        }
        Pages::Reserved => {}
    }
    let pretends =
        |m: &Migrate| matches!(m.command, CommandKind::OlderState | CommandKind::NewerState);
    let injects = |step: &Step| match step {
        Step::Inject(_) | Step::Interrupt(_) | Step::Irqfd | Step::Start(_) => true,
        Step::Migrate(migrate) => pretends(migrate),
        _ => false,
    };
    if !backend.dialect().fail_points && case.steps.iter().any(injects) {
        let name = backend.name();
        return Some(format!(
            "this {name} has no fail points: build it with --features failpoints"
        ));
    }
    let rehearses = |step: &Step| match step {
        Step::Migrate(migrate) => migrate.rehearsal == Some(true),
        // Only then can signals be held back over exec.
        Step::KillInUpdate(kill) => kill.signal.asks(),
        _ => false,
    };
    if !backend.dialect().rehearses && case.steps.iter().any(rehearses) {
        return Some(format!("{} does not rehearse commands", backend.name()));
    }
    if case.steps.iter().any(mounts) && !nix::unistd::geteuid().is_root() {
        return Some("mounting needs root".into());
    }
    case.vm.memory_limit.and_then(|_| cgroup::unmet())
}

fn mounts(step: &Step) -> bool {
    let Step::Migrate(migrate) = step else { return false };
    matches!(migrate.channel, Channel::Full | Channel::ReadOnly)
        || matches!(migrate.command, CommandKind::NoexecMount | CommandKind::WithoutKvm)
}

fn shared_huge_pages() -> bool {
    let folder = Path::new("/sys/kernel/mm/transparent_hugepage");
    let Ok(shared) = fs::read_to_string(folder.join("shmem_enabled")) else { return false };
    let on =
        ["[always]", "[advise]", "[within_size]", "[force]"].iter().any(|v| shared.contains(v));
    // Root may mount a tmpfs with huge=always whatever the default is.
    on || (nix::unistd::geteuid().is_root() && !shared.contains("[deny]"))
}

fn reserved_bytes() -> u64 {
    fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok())
        .map_or(0, |pages| pages << 21)
}
