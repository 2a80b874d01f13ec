"""The script completes in Bash what a user would type."""

import subprocess

import pytest

from telecine.__main__ import main

# Sources a script, and completes lines of words, each with the cursor at the end of the last word.
COMPLETE = """
source "$1"; shift
command=$(complete -p telecine); command=${command##*-F }; command=${command%% *}
for typed in "$@"; do
  read -ra COMP_WORDS <<< "$typed"
  [[ $typed == *" " ]] && COMP_WORDS+=("")
  COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
  COMPREPLY=()
  "$command" telecine "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
  echo "$typed|${COMPREPLY[*]}"
done
"""
LINES = {
    "telecine pl": {"plan"},
    "telecine train --optim": {"--optimizer.lr", "--optimizer.disc_lr"},
    "telecine train --dry": {"--dry_run"},
    "telecine recipes ": {"list", "show"},
    "telecine data in": {"index"},
    "telecine data videos/ in": set(),
    "telecine data --clips.height 64 in": set(),
    "telecine data index --sh": {"--shard"},
    "telecine data videos/ --shardi": {"--sharding"},
    "telecine evaluate --me": set(),
}


def test_bash_completes(tmp_path, capsys):
    assert main(["completion", "bash"]) == 0
    (tmp_path / "telecine.bash").write_text(capsys.readouterr().out)
    command = ["bash", "--norc", "-c", COMPLETE, "bash", "telecine.bash", *LINES]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    completed = dict(line.split("|") for line in done.stdout.splitlines())
    assert completed.keys() == LINES.keys()
    for line, some in LINES.items():
        words = set(completed[line].split())
        assert some <= words, line
        assert all(word.startswith(line.rpartition(" ")[2]) for word in words), line
        assert bool(words) == bool(some), line


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_command_prints_the_script(shell, capsys):
    assert main(["completion", shell]) == 0
    assert "objective.disc_start" in capsys.readouterr().out
