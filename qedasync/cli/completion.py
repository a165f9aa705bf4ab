"""``qedasync completion SHELL``: what makes a shell complete the command line.

The scripts come out of the verbs' descriptions, as the help does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from qedasync.cli.options import Example, Option, ToolError, Verb, parse

__all__ = ["VERB", "main"]

VERB = Verb(
    name="completion",
    summary="print what makes a shell complete the command line",
    names="bash|zsh|fish",
    options=(),
    text="""\
    Prints a script that completes commands, options, their values and file names.
    """,
    examples=(
        Example("source <(qedasync completion bash)", "For this shell; in ~/.bashrc for all"),
        Example("qedasync completion zsh > ~/.zfunc/_qedasync", "Where zsh's fpath has ~/.zfunc"),
        Example("qedasync completion fish > ~/.config/fish/completions/qedasync.fish", "For fish"),
    ),
)


def main(words: Sequence[str]) -> int:
    """Run ``qedasync completion``; answers the exit code."""
    from qedasync.cli.help import known_verbs

    names = parse(VERB, words).names
    if len(names) != 1 or names[0] not in _SHELLS:
        raise ToolError(f"completion is for one of {', '.join(_SHELLS)}")
    verbs = known_verbs()
    verbs["completion"] = VERB
    print("\n".join(_SHELLS[names[0]](list(verbs.values()))))
    return 0


def _spellings(option: Option) -> list[str]:
    short = [f"-{option.short}"] if option.short else []
    return short + ([f"--{option.long}"] if option.long else [])


def _all_spellings(verb: Verb) -> list[str]:
    return [word for option in verb.options for word in _spellings(option)] + ["--help"]


def _choices(verb: Verb) -> tuple[str, ...]:
    """The words a verb takes in place of file names, if there are any."""
    return tuple(_SHELLS) if verb is VERB else ()


def _takes_files(verb: Verb) -> bool:
    return bool(verb.options) and not _choices(verb)


# ---------------------------------------------------------------------------------------- bash


def _bash(verbs: Sequence[Verb]) -> Iterator[str]:
    yield "# bash completion of qedasync; made by 'qedasync completion bash'"
    yield "_qedasync() {"
    yield "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}"
    yield "    local verb=${COMP_WORDS[1]} words="
    yield "    if [[ $COMP_CWORD -gt 2 && $cur == = ]]; then cur=; fi"
    yield "    if [[ $COMP_CWORD -gt 2 && $prev == = ]]; then prev=${COMP_WORDS[COMP_CWORD-2]}; fi"
    yield "    if [[ $COMP_CWORD -eq 1 ]]; then"
    yield f'        COMPREPLY=($(compgen -W "{" ".join(verb.name for verb in verbs)}" -- "$cur"))'
    yield "        return"
    yield "    fi"
    yield '    case "$verb $prev" in'
    for verb in verbs:
        for option in verb.options:
            if option.choices:
                patterns = "|".join(f'"{verb.name} {word}"' for word in _spellings(option))
                yield f'    {patterns}) words="{" ".join(option.choices)}" ;;'
    yield "    esac"
    yield "    if [[ -z $words && $cur == -* ]]; then"
    yield '        case "$verb" in'
    for verb in verbs:
        yield f'        {verb.name}) words="{" ".join(_all_spellings(verb))}" ;;'
    yield "        esac"
    yield "    elif [[ -z $words ]]; then"
    yield '        case "$verb" in'
    yield f'        help) words="{" ".join(verb.name for verb in verbs)}" ;;'
    yield f'        completion) words="{" ".join(_SHELLS)}" ;;'
    yield "        esac"
    yield "    fi"
    yield "    if [[ -n $words ]]; then"
    yield '        COMPREPLY=($(compgen -W "$words" -- "$cur"))'
    yield "    else"
    yield "        compopt -o filenames 2> /dev/null"
    yield "        local IFS=$'\\n'"
    yield '        COMPREPLY=($(compgen -f -- "$cur"))'
    yield "    fi"
    yield "}"
    yield "complete -F _qedasync qedasync"


# ----------------------------------------------------------------------------------------- zsh


def _zsh(verbs: Sequence[Verb]) -> Iterator[str]:
    yield "#compdef qedasync"
    yield "# zsh completion of qedasync; made by 'qedasync completion zsh'"
    yield "_qedasync() {"
    yield "    local -a verbs"
    yield "    verbs=("
    for verb in verbs:
        yield f"        {_quoted(f'{verb.name}:{verb.summary}')}"
    yield "    )"
    yield "    if (( CURRENT == 2 )); then"
    yield "        _describe command verbs"
    yield "        return"
    yield "    fi"
    yield "    local verb=$words[2]"
    yield "    shift words; (( CURRENT-- ))"
    yield "    case $verb in"
    for verb in verbs:
        yield f"    {verb.name})"
        yield "        _arguments -s \\"
        for option in verb.options:
            yield from (f"            {_quoted(line)} \\" for line in _zsh_option(option))
        yield f"            '(-h --help)'{{-h,--help}}'[show its help]' {_zsh_rest(verb, verbs)}"
        yield "        ;;"
    yield "    esac"
    yield "}"
    yield '_qedasync "$@"'


def _zsh_option(option: Option) -> Iterator[str]:
    text = option.help.replace("[", "(").replace("]", ")").replace(":", ";")
    value = ""
    if option.value:
        action = f"({' '.join(option.choices)})" if option.choices else "_files"
        value = f":{option.value.lower()}:{action}".replace("allow:GLOB", "allow\\:GLOB")
    if option.short:
        yield f"*-{option.short}[{text}]{value}"
    if option.long:
        yield f"*--{option.long}{'=' if option.value else ''}[{text}]{value}"


def _zsh_rest(verb: Verb, verbs: Sequence[Verb]) -> str:
    choices = tuple(each.name for each in verbs) if verb.name == "help" else _choices(verb)
    return _quoted(f"*:word:({' '.join(choices)})" if choices else "*:file:_files")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


# ---------------------------------------------------------------------------------------- fish


def _fish(verbs: Sequence[Verb]) -> Iterator[str]:
    yield "# fish completion of qedasync; made by 'qedasync completion fish'"
    for verb in verbs:
        yield (
            f"complete -c qedasync -f -n __fish_use_subcommand -a {verb.name}"
            f" -d {_fish_quoted(verb.summary)}"
        )
    for verb in verbs:
        seen = f"complete -c qedasync -n '__fish_seen_subcommand_from {verb.name}'"
        if not _takes_files(verb):
            words = [each.name for each in verbs] if verb.name == "help" else _choices(verb)
            yield f"{seen} -f -a '{' '.join(words)}'"
        for option in verb.options:
            yield f"{seen} {_fish_option(option)}"
        yield f"{seen} -s h -l help -d 'show its help'"


def _fish_option(option: Option) -> str:
    parts = [f"-s {option.short}"] if option.short else []
    parts += [f"-l {option.long}"] if option.long else []
    if option.choices:
        parts.append(f"-x -a '{' '.join(option.choices)}'")
    elif option.value:
        parts.append("-r")
    return " ".join([*parts, f"-d {_fish_quoted(option.help)}"])


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


_SHELLS: dict[str, Callable[[Sequence[Verb]], Iterator[str]]] = {
    "bash": _bash,
    "zsh": _zsh,
    "fish": _fish,
}
