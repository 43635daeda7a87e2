/** EVENTS.md: every code with what it means, from the table that the master itself goes by. `npm run definitions` writes it anew. */
import { writeFileSync } from 'node:fs';
import { eventCodes } from './events.ts';

export function eventsDocument(): string {
  const byService = Map.groupBy(Object.entries(eventCodes), ([, { service }]) => service);
  const parts = [...byService].map(([service, codes]) => {
    const lines = codes.map(([code, { text }]) => `- \`${code}\`: ${text}`);
    return `## ${service}\n\n${lines.join('\n')}\n`;
  });
  return `# Events

What \`replctl get events\`, \`GET /api/v1/events\`, webhooks and syslog tell, by service and code. Levels are \`FATAL\`, \`ERROR\`,
\`WARNING\`, \`INFO\` and \`TRACE\`; an event has the object that it is about, such as \`Replication/orders\`. The same again within a
minute is counted, not repeated. The newest 10,000 are kept. Programs may branch on codes; messages are for people.

${parts.join('\n')}`;
}

if (import.meta.main) writeFileSync(process.argv[2] ?? '/dev/stdout', eventsDocument());
