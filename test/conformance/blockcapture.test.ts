import t from 'tap';
import { adversaryTests } from './blockrounds.ts';

t.setTimeout(600_000);
await adversaryTests(t, 6);
