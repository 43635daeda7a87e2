/** Programs on a terminal of their own, as a person has them: python3 makes it. */
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';

export const noPty = !existsSync('/usr/bin/python3') && 'no python3';
const host = `
import fcntl, json, os, pty, struct, sys, termios
argv, answers = json.loads(sys.argv[1]), json.loads(sys.argv[2])
pid, fd = pty.fork()
if pid == 0:
    os.execvp(argv[0], argv)
fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack('HHHH', 40, 200, 0, 0))
seen = b''
while True:
    try:
        data = os.read(fd, 65536)
    except OSError:
        break
    if not data:
        break
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
    seen += data
    while answers and answers[0][0].encode() in seen:
        seen = seen.split(answers[0][0].encode(), 1)[1]
        os.write(fd, answers.pop(0)[1].encode())
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 255)
`;

/** Types each answer when its question was shown; what the terminal shows comes back. */
export async function onTerminal(
  argv: string[],
  answers: [question: string, answer: string][],
  env: NodeJS.ProcessEnv,
  onOutput?: (out: string) => void,
): Promise<{ status: number | null; out: string }> {
  const child = spawn('/usr/bin/python3', ['-c', host, JSON.stringify(argv), JSON.stringify(answers)], {
    env: { TERM: 'xterm', ...env },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  let out = '';
  child.stdout.on('data', (data: Buffer) => {
    out += data.toString();
    onOutput?.(out);
  });
  const status = await new Promise<number | null>((done) => child.once('close', done));
  return { status, out };
}
