//! Commands that are given nothing to work on.

use std::process::{Command, Stdio};

#[test]
fn translate_without_input_says_so_and_still_gives_json() {
    let output =
        Command::new(env!("CARGO_BIN_EXE_berth")).arg("translate").stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success());
    assert_eq!(output.stdout, b"null\n");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("there was no input"), "{said}");
}
