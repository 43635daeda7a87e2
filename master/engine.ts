/**
 * What the control API asks of the running replicator beyond reading and writing objects in the store: facts that are
 * data of a replica (recovery points) and work that must answer at once. Everything else is level-triggered: the API
 * writes spec and requests into the store, the controllers see the change and act.
 */
import type { VolumeMode } from '../proto/wire.ts';
import type { Cleanup, CleanupMode, Garbage } from './garbage.ts';
import type { AgeSample } from './history.ts';
import type {
  Agent,
  AgentVolume,
  ClaimRef,
  GroupPointView,
  PointView,
  RecoverySpec,
  Replication,
  StorageClass,
} from './resources.ts';

export interface BootstrapRequest {
  host: string;
  port: number;
  user: string;
  hostKey: string;
  privateKey?: string;
  passphrase?: string;
  sshAgent?: true;
  jump?: { host: string; port: number; user: string; hostKey: string; privateKey?: string; passphrase?: string };
  master?: string;
  role: 'source' | 'target';
  allow: string[];
  kubelet: string;
  logLevel: string;
  waitSeconds: number;
}

export interface Engine {
  /** Committed points that can be recovered now, oldest first; `from`, `to` bound sourceTime in ms since the epoch, inclusive. */
  points(replicationUid: string, from?: number, to?: number): PointView[];
  /** The moments of which every member of the group has its point, oldest first. Absent: no groups are cut. */
  groupPoints?(group: string): GroupPointView[];
  /** Ages of the last hour, oldest first: see history.ts. Absent: none are kept. */
  history?(replicationUid: string): AgeSample[];
  /** Newest inventory of a connected or once connected agent. */
  volumes(agent: string): AgentVolume[];
  /** Asks a connected agent what a path is that its inventory does not have; undefined: it does not say. Absent: nobody to ask. */
  look?(agent: string, path: string, write?: boolean): Promise<AgentVolume | undefined>;
  /** The newest lines of a connected agent's log; undefined: it does not say. Absent: nobody to ask. */
  agentLog?(agent: string): Promise<string | undefined>;
  /** The newest lines of this master's own log. Absent: none are kept. */
  log?(): string;
  /** What a claim is, or a text: why it cannot be mirrored. Absent: no cluster is known. */
  claim?(pvc: ClaimRef): { volumeMode: VolumeMode } | string;
  /**
   * Checks what only the running system knows before a replication is accepted: may this agent read this path?
   * Answers problems by field path, empty when none. An agent that is not connected is no problem (it may come).
   */
  validateReplication(spec: Replication['spec']): { path: string; message: string }[];
  /** May the class lie there? Refuses system directories and the program's own data; problems as above. Absent: any path. */
  validateStorageClass?(spec: StorageClass['spec']): { path: string; message: string }[];
  /** May a copy be written there? Problems as above; asked again when the copy is made. */
  validateRecovery?(path: string, mode: VolumeMode): Promise<{ path: string; message: string }[]>;
  /** May the recovered claim be made? Problems as above; asked again when it is made. Absent: no cluster is known. */
  validateRecoveredClaim?(spec: RecoverySpec, replication: Replication): Promise<{ path: string; message: string }[]>;
  /** Locks a snapshot on storage until then (ms since the epoch), durably. @throws ReplicationError when that cannot be now */
  lockSnapshot?(replicationUid: string, snapshot: string, untilMs: number): Promise<void>;
  /** What is on storage and belongs to nothing: see garbage.ts. Absent: no storage of its own. */
  garbage?: { list(): Promise<Garbage[]>; cleanUp(mode: CleanupMode): Promise<Cleanup> };
  /** Begins to install an agent on a host over SSH; its Agent object says how it goes. @throws ApiProblem. Absent: it cannot */
  bootstrap?(agent: string, request: BootstrapRequest): Agent;
  /** Ends the agent's connections and makes its certificates worthless. */
  revokeAgent(name: string): void;
}

/** What happened, for people and sinks. Codes are documented in master/events.ts. */
export interface EventInput {
  code: string;
  level: 'FATAL' | 'ERROR' | 'WARNING' | 'INFO' | 'TRACE';
  message: string;
  /** e.g. Replication/orders, Agent/node-a */
  object: string | null;
}
export interface Events {
  emit(event: EventInput): void;
}
