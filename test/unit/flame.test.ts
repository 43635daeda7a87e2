import t from 'tap';
import { Session } from 'node:inspector/promises';
import { flameSvg, framesOf, type Profile } from '../bench/flame.ts';

const frame = (functionName: string) => ({ functionName, url: 'file:///a/b/c.ts', lineNumber: 4 });

t.test('time goes to who has it and all below, calls from one place are one, idle time is nothing', async (t) => {
  const nodes = [
    { id: 1, callFrame: { functionName: '(root)', url: '', lineNumber: -1 }, children: [2, 3, 5] },
    { id: 2, callFrame: { functionName: '(idle)', url: '', lineNumber: -1 } },
    { id: 3, callFrame: frame('copy'), children: [4] },
    { id: 4, callFrame: frame('hash<>') },
    { id: 5, callFrame: frame('copy') },
  ];
  const profile = { nodes, samples: [2, 3, 4, 4, 5], timeDeltas: [1000, 10, 20, 30, 40] };
  const root = framesOf(profile);
  t.equal(root.us, 100);
  const copy = root.above.get('copy b/c.ts:5');
  t.equal(copy?.us, 100);
  t.equal(copy?.above.get('hash<> b/c.ts:5')?.us, 50);
  const svg = flameSvg(profile, 'a & b');
  t.match(svg, /<title>hash&#60;&#62; b\/c\.ts:5 0 ms, 50\.0 %<\/title><rect x="0\.0" y="-48" width="600\.0"/);
  t.match(svg, 'a &#38; b: 0.00 s at work');
});

t.test('a profile of this runtime has what was at work', async (t) => {
  const session = new Session();
  session.connect();
  await session.post('Profiler.enable');
  await session.post('Profiler.start');
  let sum = 0;
  function atWork(): void {
    const endMs = performance.now() + 100;
    while (performance.now() < endMs) sum += Math.sqrt(sum + 1);
  }
  atWork();
  const { profile } = await session.post('Profiler.stop');
  session.disconnect();
  t.match(flameSvg(profile as Profile, 'here'), /atWork unit\/flame\.test\.ts/);
});
