//! Examines other load on the host, which distorts every measurement.

use procfs::{Current, LoadAverage};

use super::Finding;
use crate::observe::process;

/// Text in the environment of every process that a case starts: the case's folder, first in PATH.
fn of_a_case() -> String {
    format!("PATH={}/cpr-", std::env::temp_dir().display())
}

/// Examines the load and looks for VMs of other runs.
pub fn examine() -> Vec<Finding> {
    let load = LoadAverage::current().map_or(0.0, |load| load.one);
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let vms = process::with_environment(of_a_case().as_bytes()).unwrap_or_default();
    let pids: Vec<i32> = vms.iter().map(|vm| vm.pid).collect();
    vec![of_load(load, cpus), of_vms(&pids)]
}

fn of_load(load: f32, cpus: usize) -> Finding {
    let seen = format!("{load:.2} on {cpus} CPUs in the last minute");
    match load > cpus as f32 {
        true => Finding::limited("load", seen, "measure (bench) when the host is idle"),
        false => Finding::good("load", seen),
    }
}

fn of_vms(pids: &[i32]) -> Finding {
    if pids.is_empty() {
        return Finding::good("VMs of a harness", "none is running");
    }
    let list: Vec<String> = pids.iter().map(i32::to_string).collect();
    let seen = format!("{} running: PID {}", pids.len(), list.join(", "));
    let advice = "left by another run or by --keep: a VM that spins slows the whole host, so kill those that are not needed";
    Finding::limited("VMs of a harness", seen, advice)
}

#[cfg(test)]
mod tests {
    use super::super::Health;
    use super::*;
    use rstest::rstest;

    #[test]
    fn reports_a_busy_host_and_running_vms() {
        assert_eq!(of_load(2.01, 2).health, Health::Limited);
        assert_eq!(of_load(0.5, 2).health, Health::Good);
        assert_eq!(of_vms(&[]).health, Health::Good);
        assert_eq!(of_vms(&[7, 9]).seen, "2 running: PID 7, 9");
    }

    #[rstest]
    #[case("PWD", "/x/cpr-y".into(), false)]
    #[case("PATH", format!("{}/cpr-y/path:/bin", std::env::temp_dir().display()), true)]
    fn reports_only_processes_of_a_case(
        #[case] name: &str,
        #[case] value: String,
        #[case] told: bool,
    ) {
        let mut child = std::process::Command::new("/bin/cat")
            .env(name, value)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let pid = child.id() as i32;
        let found = process::with_environment(of_a_case().as_bytes()).unwrap();
        // `wait` closes its standard input, which ends it.
        child.wait().unwrap();
        assert_eq!(found.iter().any(|vm| vm.pid == pid), told);
    }
}
