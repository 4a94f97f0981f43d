//! Memory as a bar.

const WIDTH: u64 = 12;

/// So much of all, as in `█████░░░░░░░  42%`.
pub(crate) fn bar(used: u64, all: u64) -> String {
    let part = |of: u64| (u128::from(used.min(all)) * u128::from(of)).div_ceil(u128::from(all.max(1)));
    let full = usize::try_from(part(WIDTH)).unwrap_or_default();
    let width = usize::try_from(WIDTH).unwrap_or_default();
    let percent = u128::from(used) * 100 / u128::from(all.max(1));
    format!("{}{} {percent:>3}%", "█".repeat(full), "░".repeat(width.saturating_sub(full)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_long_as_its_part() {
        assert_eq!(bar(0, 100), "░░░░░░░░░░░░   0%");
        assert_eq!(bar(50, 100), "██████░░░░░░  50%");
        assert_eq!(bar(100, 100), "████████████ 100%");
        assert_eq!(bar(1, 100), "█░░░░░░░░░░░   1%", "a little is not nothing");
        assert_eq!(bar(0, 0), "░░░░░░░░░░░░   0%");
    }
}
