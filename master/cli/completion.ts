/**
 * `replctl completion bash|zsh`: a script for the shell, made from the verbs themselves. Names of objects are asked of
 * the master when Tab is pressed; without a master there are just none.
 */
import { UsageError } from '../../proto/cli.ts';
import { kinds } from './kinds.ts';
import { verb, type Verb } from './verb.ts';

function bash(verbs: Record<string, Verb>): string {
  const flags = Object.entries(verbs).map(([name, { program }]) => {
    const words = Object.keys(program.flags).map((flag) => `--${flag}`);
    return `    ${name}) flags="${words.join(' ')} --help" ;;`;
  });
  const ofReplications = 'snapshot|pause|resume|resync|verify|recover|watch';
  return `# replctl completion for bash; zsh: autoload -U bashcompinit && bashcompinit first.
_replctl() {
  local word=\${COMP_WORDS[COMP_CWORD]} verb=\${COMP_WORDS[1]} flags= words=
  case $verb in
${flags.join('\n')}
  esac
  if [ "$COMP_CWORD" = 1 ]; then words="${Object.keys(verbs).join(' ')}"
  elif [ "\${word#-}" != "$word" ]; then words=$flags
  else
    case $verb:$COMP_CWORD in
      get:2|describe:2|delete:2) words="${kinds.map(({ plural }) => plural).join(' ')}" ;;
      get:3|describe:3|delete:3) words=$(replctl get "\${COMP_WORDS[2]}" -o name 2>/dev/null | sed 's,^[a-z]*/,,') ;;
      completion:2) words="bash zsh" ;;
      *)
        case $verb in
          ${ofReplications}) words=$(replctl get replications -o name 2>/dev/null | sed 's,.*/,,') ;;
          rollback|cancel) words=$(replctl get recoveries -o name 2>/dev/null | sed 's,.*/,,') ;;
        esac ;;
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  [ \${#COMPREPLY[@]} -gt 0 ] || COMPREPLY=($(compgen -f -- "$word"))
}
complete -F _replctl replctl
`;
}

/** `verbs` is asked for late: completion is one of them. */
export function completion(verbs: () => Record<string, Verb>): Verb {
  return verb(
    {
      name: 'completion',
      summary: 'Print a completion script for the shell.',
      operands: 'bash|zsh',
      minOperands: 1,
      maxOperands: 1,
      flags: {},
      notes: 'Example:\n  source <(replctl completion bash)',
    },
    async (session, { operands: [shell] }) => {
      if (shell !== 'bash' && shell !== 'zsh')
        throw new UsageError(`There is no completion for ${JSON.stringify(shell)}.`, 'Give bash or zsh.');
      session.print((shell === 'zsh' ? 'autoload -U bashcompinit && bashcompinit\n' : '') + bash(verbs()));
      return 0;
    },
  );
}
