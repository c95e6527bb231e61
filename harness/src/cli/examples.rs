//! Example command lines shown by `--help`; a test parses each of them.

/// Examples of the program itself.
pub(super) const PROGRAM: &str = "\
Getting started:
  cpr-harness doctor                                     check what can run on this host
  cpr-harness run --filter update/running                boot, update, check
  cpr-harness run --vmm /usr/bin/my-vmm                  all scenarios with another build
  cpr-harness run --vmm qemu                             all scenarios with QEMU
  cpr-harness replay evidence/update/stopped             run one case again
  cpr-harness new theme/name                             create a scenario
See `cpr-harness COMMAND --help` for each command.";

/// Examples of `run`.
pub(super) const RUN: &str = "\
Examples:
  cpr-harness run                                        all scenarios
  cpr-harness run --filter failed/ --filter refused/     updates that must not succeed
  cpr-harness run --filter update/running --jobs 1 --no-audits   serially, to measure blackouts
  cpr-harness run --vmm ./cpr-vmm --require-all          another build; every case must run
  cpr-harness run --keep --filter kept/ my/case.toml     keep a failed VM running

Each case leaves evidence in evidence/THEME/NAME. After a failure, the command that repeats exactly
that case is printed.";

/// Examples of `list`.
pub(super) const LIST: &str = "\
Examples:
  cpr-harness list --filter fault
  cpr-harness list my/scenarios";

/// Examples of `replay`.
pub(super) const REPLAY: &str = "\
Examples:
  cpr-harness replay evidence/update/stopped
  cpr-harness replay evidence/update/stopped --vmm ./cpr-vmm --keep";

/// Examples of `show`.
pub(super) const SHOW: &str = "\
Examples:
  cpr-harness show evidence/update/stopped
  cpr-harness show evidence/update/stopped --source harness,qmp-received
  cpr-harness show evidence/update/stopped --html=page.html";

/// Examples of `report`.
pub(super) const REPORT: &str = "\
Examples for merging the shards of one run:
  cpr-harness report merge 1.json 2.json --html report.html --junit junit.xml
  cpr-harness report merge evidence-1 evidence-2 --json all.json";

/// Examples of `explore`.
pub(super) const EXPLORE: &str = "\
Examples:
  cpr-harness explore --steps 500
  cpr-harness explore --seed 7 --steps 500 --vmm ./cpr-vmm
  cpr-harness explore --for 10m --write found";

/// Examples of `matrix`.
pub(super) const MATRIX: &str = "\
Examples:
  cpr-harness matrix ./cpr-vmm-1.0 ./cpr-vmm-1.1
  cpr-harness matrix ./cpr-vmm-1.0 cpr-vmm --filter update/ --must-update";

/// Examples of `catalogue`.
pub(super) const CATALOGUE: &str = "\
Examples:
  cpr-harness catalogue --filter leak
  cpr-harness catalogue --clean 20
  cpr-harness catalogue --random 300 --seed 1";

/// Examples of `conform`.
pub(super) const CONFORM: &str = "\
Examples:
  cpr-harness conform --vmm cpr-vmm --vmm qemu
  cpr-harness conform --vmm cpr-vmm --vmm qemu --filter update/";

/// Examples of `bench`.
pub(super) const BENCH: &str = "\
Examples:
  cpr-harness bench --vmm cpr-vmm --vmm qemu
  cpr-harness bench --memory 64M,1G --cpus 1,4 --pages 4k,thp --runs 10 --json times.json
  cpr-harness bench compare old.json new.json";

/// Examples of `soak`.
pub(super) const SOAK: &str = "\
Examples:
  cpr-harness soak --updates 2000 --vms 4
  cpr-harness soak --for 8h --vms 2 --interval 1m --vmm ./cpr-vmm";

/// Examples of `lab`.
pub(super) const LAB: &str = "\
Examples:
  cpr-harness lab run --filter update/                   needs no /dev/kvm
  cpr-harness lab --kernel 6 --cpus 4 -- run --jobs 4    the newest installed kernel of series 6
  cpr-harness lab --device edu -- run --filter linux/    with a PCI device for pass-through
  cpr-harness lab --shell                                a shell in the lab
  cpr-harness lab --kept-memory 512M -- run --exact reboot/host-restart-stopped

The last one restarts the lab's kernel, and keeps that much memory across it.

The working directory is shared, so evidence and reports appear where they would without the lab. The
exit status is that of the command, or 3 if the lab does not start. Times in an emulated lab are no
measurements.";

/// Examples of `new`.
pub(super) const NEW: &str = "\
Example:
  cpr-harness new update/mine";

/// Examples of `schema`.
pub(super) const SCHEMA: &str = "\
Example for editors that support the Taplo directive `#:schema scenario.schema.json`:
  cpr-harness schema > scenario.schema.json";

/// Examples of `completions`.
pub(super) const COMPLETIONS: &str = "\
Examples:
  cpr-harness completions bash > /etc/bash_completion.d/cpr-harness
  cpr-harness completions zsh > ~/.zfunc/_cpr-harness";

/// Examples of `man`.
pub(super) const MAN: &str = "\
Examples:
  cpr-harness man > cpr-harness.1
  cpr-harness man --dir /usr/local/share/man/man1";

#[cfg(test)]
mod tests {
    use super::super::command;

    /// Every example command, without a redirection or its explanation.
    fn lines(text: &str) -> Vec<String> {
        let of_us = text.lines().filter(|line| line.starts_with("  cpr-harness "));
        let end = |line: &str| line.trim_start().find("   ").or(line.trim_start().find(" >"));
        of_us
            .map(|line| line.trim_start()[..end(line).unwrap_or(line.len() - 2)].to_owned())
            .collect()
    }

    #[test]
    fn every_example_parses_and_most_commands_have_one() {
        let mut without = Vec::new();
        let mut texts = vec![command().get_after_help().unwrap().to_string()];
        for sub in command().get_subcommands() {
            match sub.get_after_help() {
                Some(text) => texts.push(text.to_string()),
                None => without.push(sub.get_name().to_owned()),
            }
        }
        assert_eq!(without, ["vmm", "guests", "doctor"]);
        for line in texts.iter().flat_map(|text| lines(text)) {
            let parsed = command().try_get_matches_from(line.split_ascii_whitespace());
            assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
        }
    }

    #[test]
    fn explanations_and_redirections_are_cut_off() {
        let text = "  cpr-harness run a     all\n  cpr-harness man > x\n  cpr-harness list\nfoo";
        assert_eq!(lines(text), ["cpr-harness run a", "cpr-harness man", "cpr-harness list"]);
    }
}
