/**
 * `replctl completion bash|zsh|fish`: a script for the shell, made from the verbs themselves: verbs, flags, the words that a flag or an
 * operand may be. Names of objects are asked of the master when Tab is pressed; without a master there are just none.
 */
import { UsageError } from '../../proto/cli.ts';
import { kinds } from './kinds.ts';
import { verb, type Verb } from './verb.ts';

/** What a value or operand of this form names. */
const namesFor: Record<string, string> = {
  REPLICATION: 'replications',
  'REPLICATION|recovery/NAME': 'replications',
  RECOVERY: 'recoveries',
  GROUP: 'groups',
  CLASS: 'storageclasses',
};
const ofVerbs: Record<string, string> = { user: 'users', sink: 'sinks', recover: 'replications', bootstrap: 'agents' };

function bash(verbs: Record<string, Verb>): string {
  const each = Object.entries(verbs);
  const names = (of: string): string => `$(_replctl_names ${of})`;
  const flags = each.map(([name, { program }]) => {
    const words = Object.entries(program.flags).flatMap(([flag, { short }]) => [`--${flag}`, ...(short ? [`-${short}`] : [])]); // prettier-ignore
    return `    ${name}) flags="${words.join(' ')} --help" ;;`;
  });
  const values = each.flatMap(([name, { program }]) =>
    Object.entries(program.flags).flatMap(([flag, { value, short, choices }]) => {
      if (value === null) return [];
      const of = namesFor[value];
      // Files are completed where nothing better is known.
      const words = choices?.join(' ') ?? (of === undefined ? '' : names(of));
      const forms = [`${name}:--${flag}`, ...(short ? [`${name}:-${short}`] : [])];
      return [`    ${forms.join('|')}) words="${words}"; isValue=1 ;;`];
    }),
  );
  const operands = each.flatMap(([name, { program }]) => {
    const of = ofVerbs[name] ?? namesFor[program.operands ?? ''];
    return of === undefined ? [] : [`        ${name}:*) words=${names(of)} ;;`];
  });
  const deletable = kinds.filter(({ deletable }) => deletable).map(({ plural }) => plural);
  return `# replctl completion for bash; zsh: autoload -U bashcompinit && bashcompinit first.
_replctl_names() {
  replctl get "$1" -o name 2>/dev/null | sed 's,^[a-z]*/,,'
}
_replctl() {
  local word=\${COMP_WORDS[COMP_CWORD]} before=\${COMP_WORDS[COMP_CWORD-1]} verb=\${COMP_WORDS[1]} flags= words= isValue=
  case $verb in
${flags.join('\n')}
  esac
  [ "$COMP_CWORD" -gt 1 ] && case $verb:$before in
${values.join('\n')}
  esac
  if [ -n "$isValue" ]; then :
  elif [ "$COMP_CWORD" = 1 ]; then words="${Object.keys(verbs).join(' ')}"
  elif [ "\${word#-}" != "$word" ]; then words=$flags
  else
    case $verb:$COMP_CWORD in
      get:2|describe:2|explain:2) words="${kinds.map(({ plural }) => plural).join(' ')}" ;;
      delete:2) words="${deletable.join(' ')}" ;;
      get:3|describe:3|delete:3)
        case \${COMP_WORDS[2]} in
          points|point|pt) words=${names('replications')} ;;
          grouppoints|grouppoint|gpt) words=${names('groups')} ;;
          volumes|volume|vol) words=${names('agents')} ;;
          events|event|ev) ;;
          *) words=$(_replctl_names "\${COMP_WORDS[2]}") ;;
        esac ;;
      completion:2) words="bash zsh fish" ;;
      help:2) words="${Object.keys(verbs).join(' ')}" ;;
      *)
        case $verb:$COMP_CWORD in
${operands.join('\n')}
        esac ;;
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  [ \${#COMPREPLY[@]} -gt 0 ] || COMPREPLY=($(compgen -f -- "$word"))
}
complete -F _replctl replctl
`;
}

/** A word of fish: in single quotes nothing but these two means anything. */
const quoted = (text: string): string => `'${text.replace(/[\\']/g, '\\$&')}'`;

function fish(verbs: Record<string, Verb>): string {
  const each = Object.entries(verbs);
  const at = (name: string, word: number): string => quoted(`__replctl_at ${word} ${name}`);
  const names = (of: string): string => `'(__replctl_names ${of})'`;
  const flags = each.flatMap(([name, { program }]) =>
    Object.entries(program.flags).map(([flag, { value, short, choices, help }]) => {
      const of = namesFor[value ?? ''];
      const words = choices ? quoted(choices.join(' ')) : of === undefined ? undefined : names(of);
      // Files are completed where nothing better is known.
      const argument = value === null ? '' : words === undefined ? ' -r -F' : ` -x -a ${words}`;
      return `complete -c replctl -n ${at(name, 0)} -l ${flag}${short ? ` -s ${short}` : ''}${argument} -d ${quoted(help)}`;
    }),
  );
  const operands = each.flatMap(([name, { program }]) => {
    const of = ofVerbs[name] ?? namesFor[program.operands ?? ''];
    return of === undefined ? [] : [`complete -c replctl -n ${at(name, 2)} -a ${names(of)}`];
  });
  const plurals = quoted(kinds.map(({ plural }) => plural).join(' '));
  const deletable = quoted(
    kinds
      .filter(({ deletable }) => deletable)
      .map(({ plural }) => plural)
      .join(' '),
  );
  return `# replctl completion for fish
function __replctl_names
    replctl get $argv[1] -o name 2>/dev/null | string replace -r '^[a-z]*/' ''
end
# The verb is one of these, and so many words come before this one; 0 = however many.
function __replctl_at
    set -l words (commandline -opc | string match -v -- '-*')
    test $argv[1] -eq 0 -o $argv[1] -eq (count $words); and contains -- "$words[2]" $argv[2..]
end
function __replctl_of_kind
    set -l words (commandline -opc | string match -v -- '-*')
    switch "$words[3]"
        case points point pt
            __replctl_names replications
        case grouppoints grouppoint gpt
            __replctl_names groups
        case volumes volume vol
            __replctl_names agents
        case events event ev
        case '*'
            __replctl_names $words[3]
    end
end
complete -c replctl -f
complete -c replctl -l help -s h -d 'show the help'
${each.map(([name, { program }]) => `complete -c replctl -n '__replctl_at 1 ""' -a ${name} -d ${quoted(program.summary)}`).join('\n')}
complete -c replctl -n '__replctl_at 2 get describe explain' -a ${plurals}
complete -c replctl -n '__replctl_at 2 delete' -a ${deletable}
complete -c replctl -n '__replctl_at 3 get describe delete' -a '(__replctl_of_kind)'
complete -c replctl -n '__replctl_at 2 completion' -a 'bash zsh fish'
complete -c replctl -n '__replctl_at 2 help' -a '${Object.keys(verbs).join(' ')}'
complete -c replctl -n '__replctl_at 2 apply import' -F
${flags.join('\n')}
${operands.join('\n')}
`;
}

const scripts: Record<string, (verbs: Record<string, Verb>) => string> = {
  bash,
  zsh: (verbs) => `autoload -U bashcompinit && bashcompinit\n${bash(verbs)}`,
  fish,
};

/** `verbs` is asked for late: completion is one of them. */
export function completion(verbs: () => Record<string, Verb>): Verb {
  return verb(
    {
      name: 'completion',
      summary: 'Print a completion script for the shell.',
      operands: 'bash|zsh|fish',
      minOperands: 1,
      maxOperands: 1,
      flags: {},
      notes: 'Examples:\n  source <(replctl completion bash)\n  replctl completion fish | source',
    },
    async (session, { operands: [shell] }) => {
      const script = scripts[shell ?? ''];
      if (!script)
        throw new UsageError(`There is no completion for ${JSON.stringify(shell)}.`, 'Give bash, zsh or fish.');
      session.print(script(verbs()));
      return 0;
    },
  );
}
