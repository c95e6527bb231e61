//! Shows a soak on a terminal: a line for each VM, and one for all, until it is over.

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::{Soaking, lines};

/// The lines on the terminal.
pub struct Screen {
    // Draws until it is dropped.
    _all: MultiProgress,
    head: ProgressBar,
    vms: Vec<ProgressBar>,
}

impl Screen {
    /// Creates a screen with a line for each VM and one for all.
    pub fn new(vms: usize) -> Self {
        let all = MultiProgress::new();
        let line = || {
            let style = ProgressStyle::with_template("{wide_msg}");
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
            all.add(ProgressBar::new(0).with_style(style))
        };
        let head = line();
        let vms = (0..vms).map(|_| line()).collect();
        Self { _all: all, head, vms }
    }

    /// Updates the lines.
    pub fn show(&self, soaking: &Soaking) {
        self.head.set_message(lines::interval(soaking));
        for (index, (bar, lane)) in self.vms.iter().zip(soaking.board().lanes()).enumerate() {
            bar.set_message(lines::of_vm(index, &lane));
        }
    }

    /// Removes the lines from the terminal.
    pub fn clear(&self) {
        self.head.finish_and_clear();
        self.vms.iter().for_each(ProgressBar::finish_and_clear);
    }
}
