//! Words on standard output. Whoever reads them may stop reading (`berth status | head`): that is no failure.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write};

/// Writes to standard output, and ends the program in good order when nobody reads it any more.
pub(crate) fn write(text: Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    match out.write_fmt(text).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        // Nowhere is left to tell of it.
        Ok(()) | Err(_) => {}
    }
}

/// As `print!`, for pipes too.
macro_rules! out {
    ($($text:tt)*) => { $crate::out::write(format_args!($($text)*)) };
}

/// As `println!`, for pipes too.
macro_rules! outln {
    ($($text:tt)*) => { $crate::out::write(format_args!("{}\n", format_args!($($text)*))) };
}
