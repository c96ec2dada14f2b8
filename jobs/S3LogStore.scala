package nightjar

import java.nio.charset.StandardCharsets.UTF_8
import java.nio.file.FileAlreadyExistsException
import java.util.{Collections, Iterator => Lines, UUID}

import scala.annotation.tailrec

import io.delta.storage.HadoopFileSystemLogStore
import org.apache.hadoop.conf.Configuration
import org.apache.hadoop.fs.Options.CreateFileOptionKeys.FS_OPTION_CREATE_CONDITIONAL_OVERWRITE
import org.apache.hadoop.fs.Path
import org.apache.hadoop.fs.s3a.{AWSBadRequestException, RemoteFileChangedException}

object S3LogStore {

  /** Whether, of two commits of one version below that folder, the store refuses one. An object is written for it, and removed. */
  def isSafe(folder: String, conf: Configuration): Boolean = {
    val probe = new Path(folder, s".probe-${UUID.randomUUID}")
    val store = new S3LogStore(conf)
    def commit(): Unit = store.write(probe, Collections.emptyIterator[String], false, conf)
    try {
      commit()
      commit()
      false
    } catch {
      case _: FileAlreadyExistsException => true
    } finally probe.getFileSystem(conf).delete(probe, false)
  }
}

/**
 * Writes Delta's log to S3 so that of two commits of one version, by whichever processes and engines, one is refused.
 *
 * Delta 4.4 leaves that to one driver (S3SingleDriverLogStore), and its other stores call `create(path, overwrite = false)`,
 * which S3A turns into a look and, later, an unconditional PUT. S3A's builder makes a PUT with `If-None-Match: *` when asked to.
 */
class S3LogStore(conf: Configuration) extends HadoopFileSystemLogStore(conf) {

  private val Attempts = 5

  override def write(path: Path, actions: Lines[String], overwrite: java.lang.Boolean, conf: Configuration): Unit = {
    val text = new StringBuilder
    actions.forEachRemaining(action => text.append(action).append('\n'))
    put(path, text.toString.getBytes(UTF_8), overwrite, conf, Attempts)
  }

  override def isPartialWriteVisible(path: Path, conf: Configuration): java.lang.Boolean = false

  @tailrec
  private def put(path: Path, bytes: Array[Byte], overwrite: Boolean, conf: Configuration, attempts: Int): Unit = {
    val fs = path.getFileSystem(conf)
    val undecided =
      try {
        val builder = fs.createFile(path).recursive()
        val stream =
          if (overwrite) builder.overwrite(true).build()
          else builder.must(FS_OPTION_CREATE_CONDITIONAL_OVERWRITE, true).build()
        stream.write(bytes)
        stream.close()
        false
      } catch {
        case refused: RemoteFileChangedException =>
          throw new FileAlreadyExistsException(path.toString, null, refused.getMessage)
        // 409: another PUT of the same object was under way, and S3 has not decided between them.
        case conflict: AWSBadRequestException if conflict.statusCode == 409 && attempts > 1 => true
      }
    if (undecided) {
      Thread.sleep(100)
      put(path, bytes, overwrite, conf, attempts - 1)
    }
  }
}
