/**
 * What a read from a fanotify group brings, taken apart (fanotify(7), FAN_REPORT_DFID_NAME): the handle of a directory and the
 * name in it that something happened to. Pure. Records that we did not ask for are passed over, whatever is after a
 * length that cannot be is not believed: the buffer ends there and `torn` is true.
 */

const metadataBytes = 24;
const infoHeaderBytes = 4;
const fsidBytes = 8;
const handleHeaderBytes = 8;
const version = 3;
const FAN_Q_OVERFLOW = 0x4000n;
const infoDfidName = 2;

export interface FanEvents {
  /** name: '.' is the directory itself. handle: a struct file_handle of open_by_handle_at(2), as latin1. */
  events: { handle: string; name: Buffer }[];
  /** The kernel dropped events. */
  overflowed: boolean;
  torn: boolean;
}

/** @param bytes as read; the names answered are copies */
export function parseFanEvents(bytes: Buffer): FanEvents {
  const found: FanEvents = { events: [], overflowed: false, torn: false };
  for (let at = 0; at < bytes.length;) {
    const left = bytes.length - at;
    const length = left >= metadataBytes ? bytes.readUInt32LE(at) : 0;
    const headerBytes = length >= metadataBytes ? bytes.readUInt16LE(at + 6) : 0;
    if (length < headerBytes || length > left || headerBytes < metadataBytes || bytes[at + 4] !== version) {
      return { ...found, torn: true };
    }
    if (bytes.readBigUInt64LE(at + 8) & FAN_Q_OVERFLOW) found.overflowed = true;
    if (!parseInfos(bytes.subarray(at + headerBytes, at + length), found)) found.torn = true;
    at += length;
  }
  return found;
}

function parseInfos(infos: Buffer, found: FanEvents): boolean {
  for (let at = 0; at < infos.length;) {
    const left = infos.length - at;
    const length = left >= infoHeaderBytes ? infos.readUInt16LE(at + 2) : 0;
    if (length < infoHeaderBytes || length > left) return false;
    if (infos[at] === infoDfidName) {
      const start = at + infoHeaderBytes + fsidBytes;
      const nameStart = start + handleHeaderBytes + (length >= nameless ? infos.readUInt32LE(start) : length);
      const nameEnd = infos.indexOf(0, nameStart);
      if (nameEnd <= nameStart || nameEnd >= at + length) return false;
      found.events.push({
        handle: infos.toString('latin1', start, nameStart),
        name: Buffer.from(infos.subarray(nameStart, nameEnd)),
      });
    }
    at += length;
  }
  return true;
}

const nameless = infoHeaderBytes + fsidBytes + handleHeaderBytes;
