//! `berth completions` and `berth man`: what shells and `man` know of the commands.

use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::cli::Cli;
use crate::exit::{Exit, Failure};

pub(crate) const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  berth completions bash > ~/.local/share/bash-completion/completions/berth
  berth completions zsh > ~/.zfunc/_berth            with fpath+=~/.zfunc in ~/.zshrc
  berth completions fish > ~/.config/fish/completions/berth.fish";

pub(crate) const MAN_EXAMPLES: &str = "\
Examples:
  berth man ~/.local/share/man/man1     then: man berth, man berth-load";

/// Options of `completions`.
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// Which shell.
    shell: Shell,
}

/// Options of `man`.
#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// The folder to write them to; it is made if it is not there.
    dir: PathBuf,
}

/// `berth completions`
pub(crate) fn completions(args: &CompletionsArgs) -> Exit {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "berth", &mut script);
    out!("{}", String::from_utf8_lossy(&script));
    Exit::Done
}

/// `berth man`
pub(crate) fn man(args: &ManArgs) -> Result<Exit, Failure> {
    let failed = |source| Failure::File { path: args.dir.clone(), source };
    std::fs::create_dir_all(&args.dir).map_err(failed)?;
    let command = Cli::command().disable_help_subcommand(true);
    clap_mangen::generate_to(command, &args.dir).map_err(failed)?;
    outln!("the pages are in {}", args.dir.display());
    Ok(Exit::Done)
}
