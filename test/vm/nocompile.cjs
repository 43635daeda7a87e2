/**
 * Loaded by every Node of the virtual machine: its V8 compiles nothing. On the emulated processor it lost track of code that it had
 * compiled ("Check failed: it->second.Size() > offset"), and what is compiled there is emulated anew each time.
 */
const v8 = require('node:v8');

for (const flag of ['--no-opt', '--no-maglev', '--no-sparkplug']) v8.setFlagsFromString(flag);
