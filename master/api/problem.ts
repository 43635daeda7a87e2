/**
 * Answers that are errors: RFC 9457 problem documents. Each code is in one table with its status and title; the detail
 * says what is wrong and the cure. No stack, no path of ours and no secret ever goes out: a fault of ours is only
 * "Internal" with the request's id, under which the log has the rest.
 */
import type { ProblemView } from './schema.ts';
import { ReplicationError } from '../../proto/errors.ts';
import { StoreConflict, StoreRefused, StoreUnavailable } from '../store.ts';

export const problemCodes = {
  BadJson: { status: 400, title: 'The body is not JSON' },
  BadRequest: { status: 400, title: 'The request cannot be read' },
  Unauthorized: { status: 401, title: 'No valid token' },
  Forbidden: { status: 403, title: 'The role does not allow this' },
  NotFound: { status: 404, title: 'There is no such thing' },
  MethodNotAllowed: { status: 405, title: 'The resource does not have this method' },
  AlreadyExists: { status: 409, title: 'The name is taken' },
  VersionConflict: { status: 409, title: 'It was changed meanwhile' },
  WrongState: { status: 409, title: 'The state does not allow this' },
  NoRecoveryPoint: { status: 409, title: 'There is no such recovery point yet' },
  Locked: { status: 409, title: 'The snapshot is locked' },
  Pinned: { status: 409, title: 'The snapshot is pinned' },
  Referenced: { status: 409, title: 'Something refers to it' },
  BuiltIn: { status: 409, title: 'It belongs to the master itself' },
  LimitReached: { status: 409, title: 'There are too many already' },
  Expired: { status: 410, title: 'The history does not reach back that far' },
  TooLarge: { status: 413, title: 'The request is too large' },
  UnsupportedMediaType: { status: 415, title: 'The content type is not known' },
  Invalid: { status: 422, title: 'Fields are wrong' },
  KeyReused: { status: 422, title: 'The Idempotency-Key belongs to another request' },
  TooManyRequests: { status: 429, title: 'Too many tries' },
  HeadTooLarge: { status: 431, title: 'Address or headers are too long' },
  Internal: { status: 500, title: 'A fault of the master' },
  Unavailable: { status: 503, title: 'Not now' },
} as const satisfies Record<string, { status: number; title: string }>;
export type ProblemCode = keyof typeof problemCodes;

export interface FieldError {
  /** Such as spec.source.path; of a query query.limit, of a header its name. */
  path: string;
  message: string;
}

export class ApiProblem extends Error {
  readonly code: ProblemCode;
  readonly errors: FieldError[];
  /** For the header Retry-After. */
  readonly retryAfterSeconds: number | undefined;
  constructor(code: ProblemCode, detail: string, errors: FieldError[] = [], retryAfterSeconds?: number) {
    super(detail);
    this.retryAfterSeconds = retryAfterSeconds ?? (code === 'Unavailable' ? 1 : undefined);
    this.name = 'ApiProblem';
    this.code = code;
    this.errors = errors;
  }
}

/** 422 that names the fields. */
export function invalid(errors: FieldError[]): ApiProblem {
  return new ApiProblem('Invalid', errors.map(({ path, message }) => `${path} ${message}`).join('; '), errors);
}
export function notFound(kind: string, name: string): ApiProblem {
  return new ApiProblem('NotFound', `there is no ${kind} ${JSON.stringify(name)}`);
}

/** Whatever was thrown, as what the caller may know of it. */
export function asProblem(error: unknown): ApiProblem {
  if (error instanceof ApiProblem) return error;
  if (error instanceof StoreConflict) {
    const code = {
      exists: 'AlreadyExists',
      absent: 'NotFound',
      version: 'VersionConflict',
      expired: 'Expired',
    } as const;
    return new ApiProblem(code[error.reason], error.message);
  }
  if (error instanceof StoreRefused)
    return error.fields.length > 0
      ? new ApiProblem('Invalid', error.message, error.fields)
      : new ApiProblem('WrongState', error.message);
  if (error instanceof StoreUnavailable) return new ApiProblem('Unavailable', error.message);
  if (error instanceof ReplicationError && error.code !== 'Internal')
    return new ApiProblem(error.retry === 'backoff' ? 'Unavailable' : 'WrongState', `${error.code}: ${error.message}`);
  return ofFastify(error) ?? new ApiProblem('Internal', 'the log has more, under the request id');
}

function ofFastify(error: unknown): ApiProblem | undefined {
  if (!(error instanceof Error) || !('statusCode' in error) || typeof error.statusCode !== 'number') return undefined;
  if (error.statusCode >= 500 || error.statusCode < 400) return undefined;
  if (error.statusCode === 413) return new ApiProblem('TooLarge', 'the body may have at most 1 MiB');
  if (error.statusCode === 415)
    return new ApiProblem(
      'UnsupportedMediaType',
      'send Content-Type: application/json (or application/merge-patch+json)',
    );
  if (error instanceof SyntaxError) return new ApiProblem('BadJson', error.message);
  return new ApiProblem('BadRequest', error.message);
}

export function document(problem: ApiProblem, requestId: string): ProblemView {
  const { status, title } = problemCodes[problem.code];
  const errors = problem.errors.length === 0 ? {} : { errors: problem.errors };
  return {
    type: `urn:replicator:problem:${problem.code}`,
    title,
    status,
    detail: problem.message,
    code: problem.code,
    requestId,
    ...errors,
  };
}
