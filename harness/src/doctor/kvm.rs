//! Examines KVM and the capabilities that our VMM needs.

use std::io;
use std::path::Path;

use kvm_ioctls::{Cap, Kvm};

use super::Finding;
use crate::observe::host::{self, KernelMode};

/// Capabilities that our guests need (KVM API, `KVM_CHECK_EXTENSION`).
const NEEDED: [(Cap, &str); 8] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::Xcrs, "KVM_CAP_XCRS"),
];

/// The most vCPUs of any scenario's guest.
const VCPUS: usize = guest_images::mailbox::MAX_CPUS;

/// Examines KVM.
pub fn examine() -> Vec<Finding> {
    match Kvm::new() {
        Ok(kvm) => vec![capabilities(&kvm), limits(&kvm), kernel_mode(Path::new("/sys/module"))],
        Err(e) => vec![unusable(e.errno())],
    }
}

fn unusable(errno: i32) -> Finding {
    let seen = format!("/dev/kvm: {}", io::Error::from_raw_os_error(errno));
    let advice = match errno {
        libc::EACCES | libc::EPERM => {
            "be root, or join the device's group (usermod -aG kvm USER) and log in again; in a container, allow /dev/kvm in its device cgroup"
        }
        libc::ENOENT | libc::ENXIO | libc::ENODEV => {
            "load kvm_intel or kvm_amd; in a VM, enable nested virtualization on its host; in a container, pass --device /dev/kvm"
        }
        _ => "see the kernel log (dmesg) for messages from KVM",
    };
    let without = "without it: cpr-harness lab run";
    Finding::missing("KVM", seen, format!("{advice}; {without}"))
}

fn capabilities(kvm: &Kvm) -> Finding {
    let missing: Vec<&str> = NEEDED
        .iter()
        .filter(|(capability, _)| !kvm.check_extension(*capability))
        .map(|(_, name)| *name)
        .collect();
    let version = kvm.get_api_version();
    if missing.is_empty() {
        return Finding::good("KVM", format!("/dev/kvm opens, API {version}"));
    }
    let seen = format!("API {version}, without {}", missing.join(", "));
    Finding::missing("KVM", seen, "run a kernel whose KVM has them: x86-64, 5.10 or newer")
}

fn limits(kvm: &Kvm) -> Finding {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    of_vcpus(kvm.get_max_vcpus(), kvm.get_nr_memslots(), cpus)
}

fn of_vcpus(most: usize, memslots: usize, cpus: usize) -> Finding {
    let seen = format!("up to {most} vCPUs and {memslots} memslots, on {cpus} CPUs");
    if most < VCPUS {
        let advice = format!("scenarios with up to {VCPUS} vCPUs fail here: exclude them");
        return Finding::limited("vCPUs", seen, advice);
    }
    if cpus < 2 {
        let advice = "give the machine a second CPU: guest and VMM share the only one, and blackouts are as long as its time slices";
        return Finding::limited("vCPUs", seen, advice);
    }
    Finding::good("vCPUs", seen)
}

/// Whether the guest's kernel mode runs on the CPU.
fn kernel_mode(modules: &Path) -> Finding {
    let topic = "guest kernel mode";
    match host::kernel_mode(modules) {
        (KernelMode::OnTheCpu, Some(name)) => Finding::good(topic, format!("on the CPU ({name})")),
        (_, Some(name)) => Finding::limited(
            topic,
            format!("emulated ({name})"),
            "our guests support this, but Linux does not boot; for realistic times use a host with VMX or SVM",
        ),
        (_, None) => Finding::limited(
            topic,
            "neither kvm_intel nor kvm_amd is loaded as a module",
            "fine if KVM is built into the kernel; otherwise expect emulation and unrealistic times",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Health;
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case(libc::EACCES, "usermod")]
    #[case(libc::ENOENT, "kvm_intel")]
    #[case(libc::EBUSY, "dmesg")]
    fn an_unusable_device_comes_with_advice(#[case] errno: i32, #[case] help: &str) {
        let finding = unusable(errno);
        assert_eq!(finding.health, Health::Missing);
        assert!(finding.advice.contains(help), "{finding:?}");
        assert!(finding.advice.ends_with("; without it: cpr-harness lab run"), "{finding:?}");
        assert!(finding.seen.ends_with(&format!("(os error {errno})")), "{finding:?}");
    }

    #[rstest]
    #[case(4, 2, Health::Limited)]
    #[case(8, 1, Health::Limited)]
    #[case(8, 2, Health::Good)]
    fn too_few_vcpus_or_cpus_is_a_limit(
        #[case] most: usize,
        #[case] cpus: usize,
        #[case] health: Health,
    ) {
        assert_eq!(of_vcpus(most, 32, cpus).health, health);
    }

    #[rstest]
    #[case(&["kvm", "kvm_amd"], Health::Good, "(kvm_amd)")]
    #[case(&["kvm", "kvm_pvm"], Health::Limited, "emulated (kvm_pvm)")]
    #[case(&["kvm"], Health::Limited, "neither")]
    fn the_loaded_module_decides(
        #[case] modules: &[&str],
        #[case] health: Health,
        #[case] seen: &str,
    ) {
        let folder = tempfile::tempdir().unwrap();
        for module in modules {
            std::fs::create_dir(folder.path().join(module)).unwrap();
        }
        let finding = kernel_mode(folder.path());
        assert_eq!(finding.health, health);
        assert!(finding.seen.contains(seen), "{finding:?}");
    }
}
